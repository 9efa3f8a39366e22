"""A text data set of the hub by name, from a stand-in: which files are taken, and what happens without a network."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
from hub_stand_in import COMMIT, Handler, Hub, serve
from huggingface_hub import constants
from typer.testing import CliRunner

from feedfwd.cli import app
from feedfwd.data.corpus import Corpus
from feedfwd.data.sources import find
from feedfwd.data.text_tables import read_table
from feedfwd.errors import DataError


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    polars.DataFrame({"text": texts}).write_parquet(file)
    return file.getvalue()


CONTENT = {
    "README.md": b"# a card, no data",
    "en/train-00000.parquet": parquet(["one", "two"]),
    "en/train-00001.parquet": parquet(["three"]),
    "en/test-00000.parquet": parquet(["held back"]),
    "zh/all.jsonl": '{"text": "四"}\n'.encode(),
    "labels/train.json": b'[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]',
    "labels/test.json": b'[{"text": "c", "label": "x"}]',
    "dataset_infos.json": b"{}",
}


class WithListing(Handler):
    """The stand-in's handler, and the request that tells a repository's files."""

    def answer(self, body: bool) -> None:
        if self.path.split("?")[0] != "/api/datasets/some/texts":
            # At a commit there is what is there at main.
            self.path = self.path.replace(f"/resolve/{COMMIT}/", "/resolve/main/")
            return super().answer(body)
        self.server.seen.append((self.command, self.path, None))
        names = [{"rfilename": name} for name in CONTENT]
        content = json.dumps({"id": "some/texts", "sha": COMMIT, "siblings": names}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve({f"some/texts/resolve/main/{name}": content for name, content in CONTENT.items()}) as server:
        server.RequestHandlerClass = WithListing
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


def texts(name: str) -> list[str]:
    return [piece.text for piece in Corpus([name], validation=0).pieces("train")]


def test_the_training_files_are_taken_and_it_is_said(hub: Hub) -> None:
    assert texts("some/texts") == ["one", "two", "three"]
    assert "2 files of the hub, without 2 that are not for training" in find("some/texts").notes[0]


def test_a_folder_of_a_data_set_can_be_named(hub: Hub) -> None:
    assert texts("some/texts/zh") == ["四"]
    assert texts("some/texts/en") == ["one", "two", "three"]


def test_labelled_texts_come_from_the_hub_too(hub: Hub) -> None:
    assert read_table("some/texts/labels").labels == ("x", "y")
    assert read_table("some/texts/labels", other=True).texts == ("c",)
    assert read_table("some/texts/labels", other=True).name == "labels"


def test_info_tells_what_a_data_set_of_the_hub_holds(hub: Hub) -> None:
    done = CliRunner().invoke(app, ["info", "some/texts"])
    assert done.exit_code == 0, done.output
    assert "2 files, 11 bytes of text as UTF-8" in done.output and "2 files of the hub" in done.output


def test_a_path_that_exists_wins(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "some" / "texts").mkdir(parents=True)
    (tmp_path / "some" / "texts" / "a.txt").write_text("mine")
    assert texts("some/texts") == ["mine"] and not hub.seen


def test_what_was_fetched_is_there_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts("some/texts") == ["one", "two", "three"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert texts("some/texts") == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some/other", "there is no file or folder some/other, and it can't be fetched"),
        ("some/texts/fr", "has no text files in fr/"),
        ("some/texts.jsonl", "there is no file or folder some/texts.jsonl: check the path"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Corpus([name])
    assert "\n" not in str(caught.value) and caught.value.hint


def test_an_unreachable_hub_is_one_line_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="can't be fetched from the Hugging Face hub"):
        Corpus(["some/texts"])
