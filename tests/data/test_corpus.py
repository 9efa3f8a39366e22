"""Documents from every form of file; copies go, the split is by document, and nothing is ever served stale."""

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars
import pytest

from feedfwd.data.corpus import CUT, TRAIN, VALIDATION, Corpus, split_documents
from feedfwd.data.documents import PIECE, Tally, cut, read_pieces
from feedfwd.data.sources import NOT_LIBRARY, find
from feedfwd.errors import DataError

TEXTS = ["one apple", "two\r\npears", "drei Äpfel", "四个梨", "five 🍐", "x = 1\n", 'a,b;c\t"d"', "8", "nine", "ten"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEEDFWD_CACHE", str(folder))
    return folder


def documents(corpus: Corpus, part: str = "train", source: int | None = None) -> list[str]:
    texts, text = [], ""
    for piece in corpus.pieces(part, source):  # type: ignore[arg-type]
        text += piece.text
        if piece.last:
            texts.append(text)
            text = ""
    assert text == ""  # a document never stays open
    return texts


def whole(path: Path | str, **options) -> list[str]:
    return documents(Corpus([str(path)], validation=0, **options))


def jsonl(path: Path, texts: list[str], name: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, name: t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    return path


def write_folder(path: Path) -> None:
    path.mkdir()
    for i, text in enumerate(TEXTS):
        (path / f"{i}.txt").write_bytes(text.encode())


def write_gzip(path: Path) -> None:
    plain = jsonl(path.with_suffix(".plain"), TEXTS)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def write_zst(path: Path) -> None:
    polars.DataFrame({"text": TEXTS}).lazy().sink_ndjson(path, compression="zstd", check_extension=False)


FORMS: dict[str, Callable[[Path], object]] = {
    "folder": write_folder,
    "a.jsonl": lambda path: jsonl(path, TEXTS),
    "a.jsonl.gz": write_gzip,
    "a.jsonl.zst": write_zst,
    "a.parquet": lambda path: polars.DataFrame({"n": range(10), "text": TEXTS}).write_parquet(path),
    "a.csv": lambda path: polars.DataFrame({"n": range(10), "text": TEXTS}).write_csv(path),
    "tabs.csv": lambda path: polars.DataFrame({"n": range(10), "text": TEXTS}).write_csv(path, separator="\t"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_documents_to_the_bit(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / form)
    assert whole(tmp_path / form) == TEXTS


def test_one_file_is_one_document_gzipped_or_not_and_its_mark_goes(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbf# Title\r\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("né".encode()))
    (tmp_path / "c.py").write_bytes("# -*- coding: latin-1 -*-\n'é'\n".encode("latin-1"))
    assert whole(tmp_path) == ["# Title\r\n", "né", "# -*- coding: latin-1 -*-\n'é'\n"]


def test_folders_are_read_in_a_fixed_order_without_hidden_or_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    for name in ("b/2.txt", "a.txt", "b/1.md", ".git/x.txt", "photo.png", "b.py"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    assert whole(folder) == ["a.txt", "b/1.md", "b/2.txt", "b.py"]


def test_long_documents_come_in_pieces_cut_between_words() -> None:
    text = "".join(f"line {i} of a long text\n\n  with space" for i in range(20_000))
    pieces = list(cut(text[i : i + 70_000] for i in range(0, len(text), 70_000)))
    assert "".join(p.text for p in pieces) == text and [p.last for p in pieces].index(True) == len(pieces) - 1
    assert all(0 < len(p.text) <= PIECE for p in pieces)
    for left, right in pairwise(pieces):
        assert not left.text[-1].isalpha() or right.text[0] == " "
    unbroken = "字" * 100_000
    assert "".join(p.text for p in cut([unbroken])) == unbroken


def test_the_text_column_is_guessed_and_said_or_named(tmp_path: Path) -> None:
    rows = [{"title": "short", "body": f"a longer text {i}", "n": 1} for i in range(5)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    corpus = Corpus([str(path)], validation=0)
    assert documents(corpus)[0] == "a longer text 0" and any("'body'" in note for note in corpus.notes)
    assert whole(path, column="title") == ["short"]
    assert not any("column" in note for note in Corpus([str(path)], validation=0, column="title").notes)


def test_few_broken_rows_are_counted_and_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(96)])
    lines = path.read_bytes().splitlines()
    lines[10:10] = [b'{"text": "torn', b"[1, 2]", b'{"text": 3}', b'{"text": "\xff"}', b"", b'{"text": null}']
    path.write_bytes(b"\n".join(lines))
    corpus = Corpus([str(path)], validation=0)
    assert documents(corpus) == [f"text {i}" for i in range(96)]
    (note,) = corpus.notes
    assert "left out 4 of 101 rows" in note and "line 11: no JSON, line 12: no JSON object" in note


def test_files_that_hold_no_text_are_left_out_of_a_folder_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    write_folder(folder)
    (folder / "3b.txt").write_bytes(b"caf\xe9")
    corpus = Corpus([str(folder)], validation=0)
    assert documents(corpus) == TEXTS and any("3b.txt is not UTF-8" in note for note in corpus.notes)


def test_a_folder_of_work_is_read_without_what_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    write_folder(folder)
    run_of_ours(folder / "run")
    for name, content in {
        ".venv/a.txt": b"hidden", "venv/pyvenv.cfg": b"home", "venv/lib/a.txt": b"venv", "node_modules/a.md": b"js",
        "2a.txt": b"\0\1", "5b.csv": b'n,text\n1,good\n2,"open\n', "6b.parquet": b"PAR1", "7b.txt.gz": b"no",
        "7c.jsonl": b"{\n", "8b.txt": b"locked",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "9b.txt").symlink_to("nowhere")
    os.mkfifo(folder / "9c.txt")
    opened = Path.open

    def locked(path: Path, *args, **options):
        if path.name == "8b.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", locked)
    corpus = Corpus([str(folder)])
    assert sorted(documents(corpus) + documents(corpus, "validation")) == sorted(TEXTS)
    said = " ".join(corpus.notes)
    assert "1 run directory" in said and "2 program environments" in said and "1 broken link" in said
    assert "1 special file" in said and "8b.txt can't be read" in said and "2 more files, 5 in all" in said
    with pytest.raises(DataError, match=r"8b\.txt can't be read"):
        Corpus([str(folder / "8b.txt")])


def test_each_text_comes_once_however_many_sources_have_it(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", ["x", "y", "x", ""]), jsonl(tmp_path / "b.jsonl", ["y", "z", "Z"])
    corpus = Corpus([str(a), str(b)], validation=0)
    assert [documents(corpus, source=i) for i in (0, 1)] == [["x", "y"], ["z", "Z"]]
    assert documents(corpus) == ["x", "y", "z", "Z"]
    assert "left out 2 exact copies of other documents" in corpus.notes


# --- the split --------------------------------------------------------------------------------------------------------


def test_the_split_is_by_document_complete_and_repeatable(tmp_path: Path) -> None:
    texts = [f"document {i} " * (1 + i % 7) for i in range(1000)]
    path = jsonl(tmp_path / "a.jsonl", texts)
    corpus = Corpus([str(path)], validation=0.1, seed=3)
    train, held = documents(corpus), documents(corpus, "validation")
    assert sorted(train + held) == sorted(texts) and 70 < len(held) < 130
    assert documents(Corpus([str(path)], seed=3), "validation") == held
    assert documents(Corpus([str(path)], seed=4), "validation") != held
    assert corpus.bytes_of("validation") == sum(len(t.encode()) for t in held)


def test_a_text_stays_on_its_side_when_others_come(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(200)]
    held = set(documents(Corpus([str(jsonl(tmp_path / "a.jsonl", texts))]), "validation"))
    more = ["new first", *reversed(texts), *(f"another {i}" for i in range(200))]
    held_of_more = documents(Corpus([str(jsonl(tmp_path / "b.jsonl", more))]), "validation")
    assert {t for t in held_of_more if t in texts} == held


@pytest.mark.parametrize("text", ["abcdefghij" * 10_000, "字é🍐a" * 5_003], ids=["ascii", "mixed"])
def test_one_document_is_cut_at_nine_tenths(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    corpus = Corpus([str(path)])
    (train,), (held,) = documents(corpus), documents(corpus, "validation")
    assert train + held == text and abs(len(train.encode()) - 0.9 * len(text.encode())) < 4
    if text.isascii():
        assert len(train) == int(0.9 * len(text))


def test_a_document_that_outweighs_all_others_is_cut(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["small", "word " * 1000, "tiny"])
    corpus = Corpus([str(path)])
    train, held = "".join(documents(corpus)), "".join(documents(corpus, "validation"))
    assert train.startswith("small") or held.startswith("small")
    assert len(train) + len(held) == 5009 and 490 <= len(held) <= 520


def test_every_source_is_split_by_itself(tmp_path: Path) -> None:
    many = jsonl(tmp_path / "many.jsonl", [f"a large source of many documents, this is {i}" for i in range(500)])
    one, few = tmp_path / "one.txt", jsonl(tmp_path / "few.jsonl", [f"few {i}" for i in range(4)])
    one.write_text("0123456789" * 10)
    corpus = Corpus([str(many), str(one), str(few)])
    held = [sum(map(len, documents(corpus, "validation", source))) for source in range(3)]
    assert held == corpus.survey.validation_bytes and held[1] == 10 and held[2] > 0, "each is in the scores"
    assert documents(corpus, "train", 1) == ["0123456789" * 9]
    assert documents(corpus) == [text for source in range(3) for text in documents(corpus, "train", source)]
    assert documents(corpus, "validation", 0) == documents(Corpus([str(many)]), "validation")
    assert any("half of the text of one.txt" in note for note in corpus.notes) and "end of one" in corpus.describe()


def test_what_only_copies_another_source_is_no_harm(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", TEXTS), jsonl(tmp_path / "b.jsonl", TEXTS[:3])
    corpus = Corpus([str(a), str(b)])
    assert corpus.survey.train_bytes[1] == corpus.survey.validation_bytes[1] == 0
    assert documents(corpus, "train", 1) == documents(corpus, "validation", 1) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.001, 0.1, 0.9, 0.999])
def test_both_sides_get_a_document(seed: int, share: float) -> None:
    digests = np.array([1, 2**64 - 1, 77], dtype=np.uint64)
    fates, _ = split_documents(digests, np.array([10, 10, 10]), share, seed)
    assert {TRAIN, VALIDATION} <= set(fates.tolist()) and CUT not in fates


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_never_served_stale_even_with_its_old_date(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first text")
    stat = path.stat()
    before = Corpus([str(path)], validation=0)
    path.write_text("other text")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = Corpus([str(path)], validation=0)
    assert documents(after) == ["other text"] and before.fingerprint != after.fingerprint
    path.write_text("first text")
    assert Corpus([str(path)], validation=0).fingerprint == before.fingerprint


def test_the_fingerprint_is_of_content_and_settings_not_of_places(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", TEXTS), jsonl(tmp_path / "b.jsonl", TEXTS)
    base = Corpus([str(a)]).fingerprint
    assert Corpus([str(b)]).fingerprint == base
    assert len({base, *(Corpus([str(a)], **o).fingerprint for o in ({"seed": 1}, {"validation": 0.2}))}) == 3
    assert Corpus([str(a)], column="text").fingerprint != base


def test_a_second_opening_reads_no_documents_and_a_damaged_cache_is_made_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    first = Corpus([str(path)])
    with monkeypatch.context() as patched:
        patched.setattr("feedfwd.data.corpus.read_pieces", lambda *_: pytest.fail("read again"))
        again = Corpus([str(path)])
    assert again.survey.fates.tolist() == first.survey.fates.tolist() and again.notes == first.notes
    for file in cache.rglob("fates.npy"):
        file.write_bytes(b"junk")
    assert documents(Corpus([str(path)])) == documents(first)


def test_a_file_that_changes_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    corpus = Corpus([str(path)], validation=0)
    jsonl(path, [*TEXTS, "one more"])
    with pytest.raises(DataError, match="has changed while it was being read"):
        documents(corpus)


def test_memory_stays_flat(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        path = tmp_path / f"{megabytes}.txt"
        with path.open("w") as file:
            for i in range(megabytes):
                file.write(f"{i:07} words and so on " * 40_000)
        tracemalloc.start()
        corpus = Corpus([str(path)])
        assert sum(len(p.text) for p in corpus.pieces("train")) > megabytes * 800_000
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(12) < 1.2 * peak(3)


# --- stdlib, weights --------------------------------------------------------------------------------------------------


def test_the_standard_library_is_found_sorted_and_without_tests() -> None:
    source = find("stdlib")
    names = [path.name for path in source.files]
    assert len(names) > 300 and "argparse.py" in names and list(source.files) == sorted(source.files)
    assert not any(NOT_LIBRARY.intersection(path.parts[-3:-1]) for path in source.files) and source.notes
    tally = Tally()
    assert "".join(p.text for p in read_pieces(source.files[names.index("this.py")], None, tally)).startswith("s =")


def test_sampling_takes_an_even_share_of_the_training_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [f"{i:04} " * 20 for i in range(1000)])
    corpus = Corpus([str(path)], validation=0)
    sample = list(corpus.texts(limit=20_000))
    assert len(sample) == 200 and sample[0] < "0010" and sample[-1] > "0990"
    assert len(list(corpus.texts(limit=10**9))) == 1000


# --- what can't be read -----------------------------------------------------------------------------------------------


def broken_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(jsonl(path.with_suffix(".plain"), TEXTS * 50).read_bytes())[:-20])


def no_text_files(path: Path) -> None:
    path.mkdir()
    for i in range(3):
        (path / f"b{i}.txt").write_bytes(b"\0\1\2")


def half_broken(path: Path) -> None:
    write_folder(path)
    (path / "a.jsonl").write_text('{"text": "a"}\n{torn\n' * 9)


def run_of_ours(path: Path) -> None:
    path.mkdir()
    (path / "config.toml").write_text('seed = 0\n\n[run]\nformat = 1\nverb = "pretrain"\nfeedfwd = "0.1"\n')
    (path / "notes.md").write_text("text of a run")


BAD: dict[str, tuple[str, Callable[[Path], object], dict[str, object], str]] = {
    "missing": ("a.txt", lambda p: None, {}, "there is no file or folder"),
    "empty": ("a.txt", lambda p: p.write_bytes(b""), {}, "has no text"),
    "empty lines": ("a.jsonl", lambda p: p.write_text("\n\n"), {}, "has no text"),
    "empty texts": ("a.jsonl", lambda p: jsonl(p, ["", ""]), {}, "no column of text|has no text"),
    "one letter": ("a.txt", lambda p: p.write_text("x"), {}, "too few to hold some out"),
    "binary": ("a.txt", lambda p: p.write_bytes(b"PK\x03\x04\0\0" * 9), {}, "is a binary file"),
    "binary csv": ("a.csv", lambda p: p.write_bytes(b"\0" * 9), {}, "is a binary file"),
    "utf-16": ("a.txt", lambda p: p.write_text("text", encoding="utf-16"), {}, "is UTF-16.*iconv"),
    "latin-1": ("a.txt", lambda p: p.write_bytes(b"caf\xe9 au lait"), {}, "is not UTF-8 text .byte 0xe9.*iconv"),
    "gb18030": ("a.txt", lambda p: p.write_bytes("城市的网络\n".encode("gb18030") * 9), {}, "iconv -f GB18030"),
    "an empty column": ("a.jsonl", lambda p: jsonl(p, ["", ""]), {"column": "text"}, "no text in column 'text'"),
    "latin-1 csv": ("a.csv", lambda p: p.write_bytes(b"n,text\n1,caf\xe9\n"), {}, "is not UTF-8 text"),
    "unknown form": ("a.docx", lambda p: p.write_bytes(b"x"), {}, "not of a form that text is read from.*rename"),
    "empty folder": ("texts", lambda p: p.mkdir(), {}, "holds no text files"),
    "bad folder": ("texts", no_text_files, {}, "none of the 3 files of texts holds text.*binary"),
    "a pipe": ("a.txt", os.mkfifo, {}, "neither a file nor a folder"),
    "broken link": ("a.txt", lambda p: p.symlink_to("nowhere"), {}, "there is no file or folder"),
    "a run": ("run", lambda p: run_of_ours(p), {}, "is a run directory.*--from"),
    "a folder with a half broken file": ("texts", half_broken, {}, "9 of 18 rows"),
    "many broken lines": ("a.jsonl", lambda p: p.write_text('{"text": "a"}\n{torn\n' * 9), {}, "9 of 18 rows.*line 2"),
    "all broken lines": ("a.jsonl", lambda p: p.write_bytes(b"\0\1\n" * 9), {}, "9 of 9 rows can't be used"),
    "deep json": ("a.jsonl", lambda p: p.write_text("[" * 10**5), {}, "1 of 1 rows can't be used"),
    "half characters": ("a.jsonl", lambda p: p.write_text('{"text": "\\ud800"}\n'), {}, "1 of 1 rows can't be used"),
    "no text column": ("a.jsonl", lambda p: p.write_text('{"n": 1}\n'), {}, "no column of text.*its columns are: n"),
    "other column": ("a.jsonl", lambda p: jsonl(p, ["x"]), {"column": "body"}, "no column 'body'.*id, text"),
    "broken gzip": ("a.jsonl.gz", broken_gzip, {}, "is a damaged gzip file"),
    "no gzip": ("a.jsonl.gz", lambda p: jsonl(p, TEXTS), {}, "is a damaged gzip file"),
    "no zstd": ("a.jsonl.zst", lambda p: jsonl(p, TEXTS), {}, "is a damaged Zstandard file"),
    "broken zstd": ("a.jsonl.zst", lambda p: p.write_bytes(b"\x28\xb5\x2f\xfdjunk"), {}, "can't be read"),
    "broken parquet": ("a.parquet", lambda p: p.write_bytes(b"PAR1junk"), {}, "can't be read"),
    "numbers": ("a.parquet", lambda p: polars.DataFrame({"n": [1]}).write_parquet(p), {}, "no column of text"),
    "ragged csv": ("a.csv", lambda p: p.write_text("n,text\n1,a,b\n2,c\n"), {}, "3 cells for 2 columns"),
    "open quote": ("a.csv", lambda p: p.write_text('n,text\n1,"a\n'), {}, "line 2.*check the quotes"),
    "weights": ("a.txt", lambda p: p.write_text("text"), {"weights": [1.0, 2.0]}, "2 weights for 1 sources"),
    "weight 0": ("a.txt", lambda p: p.write_text("text"), {"weights": [0.0]}, "one positive weight"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, case: str) -> None:
    name, write, options, message = BAD[case]
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        documents(Corpus([str(tmp_path / name)], **options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and caught.value.hint


def test_no_source_and_no_place_for_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no text source"):
        Corpus([])
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "file"))
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match=r"can't be written.*FEEDFWD_CACHE"):
        Corpus([str(path)])
