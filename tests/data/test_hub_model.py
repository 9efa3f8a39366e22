"""A model of the hub by name, from a stand-in: which files are taken, and what happens without a network."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import COMMIT, Handler, Hub, serve
from huggingface_hub import constants

from feedfwd.data.hub import fetch_model
from feedfwd.errors import DataError

CONTENT = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "modules.json": b"[]",
    "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another form",
    "run.py": b"raise SystemExit",
}
TAKEN = {
    "config.json", "model.safetensors", "tokenizer.json", "modules.json", "chat_template.jinja",
    "1_Pooling/config.json",
}  # fmt: skip


class Models(Handler):
    """The stand-in's handler, and what the hub tells of a model."""

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if not path.startswith("/api/models/some/model"):
            self.path = self.path.replace(f"/resolve/{COMMIT}/", "/resolve/main/")
            return super().answer(body)
        self.server.seen.append((self.command, self.path, None))
        siblings = [{"rfilename": name, "size": len(content)} for name, content in CONTENT.items()]
        found: object = {"id": "some/model", "sha": COMMIT, "siblings": siblings}
        if "/tree/" in path:
            found = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in CONTENT.items()]
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve({f"some/model/resolve/main/{name}": content for name, content in CONTENT.items()}) as server:
        server.links = {path.removeprefix("/datasets"): sha for path, sha in server.links.items()}
        server.RequestHandlerClass = Models
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


def test_what_a_model_is_read_from_is_taken_and_no_more(hub: Hub) -> None:
    folder = fetch_model("some/model")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == TAKEN
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_what_was_fetched_is_there_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_model("some/model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model("some/model") == folder


def test_pickled_weights_alone_are_refused_with_what_to_run(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CONTENT, "model.safetensors")
    with pytest.raises(
        DataError, match=r"some/model has its weights as a pickle alone.*python -c .*convert\(get\("
    ) as e:
        fetch_model("some/model")
    compile(e.value.hint.partition('python -c "')[2].removesuffix('"'), "hint", "exec")


def test_a_name_that_the_hub_has_not_is_one_line(hub: Hub) -> None:
    with pytest.raises(DataError, match="some/other") as caught:
        fetch_model("some/other")
    assert "\n" not in str(caught.value) and caught.value.hint


def test_an_unreachable_hub_is_one_line_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"can't be fetched from the Hugging Face hub.*give the path") as caught:
        fetch_model("some/model")
    assert "\n" not in str(caught.value)
