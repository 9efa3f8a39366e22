"""Labelled texts, pairs and conversations from files of every encoding, folders, and data sets of the hub."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from feedfwd.data.chats import read_chats
from feedfwd.data.pairs import read_pairs
from feedfwd.data.text_files import read_columns
from feedfwd.data.text_tables import read_table
from feedfwd.errors import DataError

CHINESE = "房间很干净，服务很好。早餐不错"


def written(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def csv(rows: list[tuple[str, str]]) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "cp1252"])
def test_an_old_encoding_is_found_out_and_said(tmp_path: Path, encoding: str) -> None:
    said = CHINESE if encoding != "cp1252" else "Täglich wächst “es”"
    table = read_table(written(tmp_path / "t.csv", csv([(said, "x"), ("b", "y")]), encoding))
    assert table.texts[0] == said
    assert any(encoding.replace("utf", "UTF") in note for note in table.notes), table.notes


def test_damaged_utf_8_stays_utf_8(tmp_path: Path) -> None:
    text = csv([(CHINESE * 3, "x"), ("one?two", "y")]).encode()
    (tmp_path / "t.csv").write_bytes(text.replace(b"?", b"\xff"))
    table = read_table(str(tmp_path / "t.csv"))
    assert table.texts == (CHINESE * 3, "one\ufffdtwo")
    assert "damaged: 1 characters that are not UTF-8, the first on line 3" in table.notes[0]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, mark: str) -> None:
    rows = [{"prompt": f"a{mark}b", "completion": "c"}] * 2
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert len(read_chats(written(tmp_path / "c.jsonl", text))) == 2
    assert read_table(written(tmp_path / "t.txt", f"a{mark}b@x\nc@y\n")).texts == (f"a{mark}b", "c")
    assert read_table(str(tmp_path / "t.txt"), labelled=False).texts == (f"a{mark}b@x", "c@y")


BROKEN: dict[str, tuple[str, Callable[[int], str], str]] = {  # name, a row, and one that is none
    "txt": ("t.txt", lambda i: f"text {i}@{'xy'[i % 2]}", "no label here"),
    "csv": ("t.csv", lambda i: f"text {i},{'xy'[i % 2]}" if i else "text,label", "one,too,many"),
    "quotes": ("t.csv", lambda i: f"text {i},{'xy'[i % 2]}" if i else "text,label", '"so" he said,x'),
    "jsonl": ("t.jsonl", lambda i: json.dumps({"text": f"text {i}", "label": "xy"[i % 2]}), '{"text": '),
}


@pytest.mark.parametrize("case", BROKEN)
def test_few_broken_rows_are_left_out_and_named(tmp_path: Path, case: str) -> None:
    name, row, broken = BROKEN[case]
    rows = [row(i) for i in range(38)]
    path = written(tmp_path / name, "\n".join([*rows[:20], broken, *rows[20:]]))
    table = read_table(path)
    assert "text 37" in table.texts and broken not in table.texts
    (note,) = [note for note in table.notes if "rows left out" in note]
    assert note.startswith("1 of 3") and ("line 21" in note or "row 21" in note)
    written(tmp_path / name, "\n".join([*rows[:10], broken, broken, broken]))
    with pytest.raises(DataError, match=r"line 11|row 11"):
        read_table(path)


def test_a_quote_that_is_never_closed_is_named(tmp_path: Path) -> None:
    rows = [(f"text {i}", "xy"[i % 2]) for i in range(60)]
    path = written(tmp_path / "t.csv", csv([*rows[:30], ('"open', "x"), *rows[30:]]))
    with pytest.raises(DataError, match="a quote opened on line 32 is never closed"):
        read_table(path)


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    written(tmp_path / "d" / "train-1.csv", csv([("a b", "x"), ("c d", "y")]))
    written(tmp_path / "d" / "more" / "train-2.jsonl", '{"text": "e f", "label": "x"}\n')
    written(tmp_path / "d" / "test.csv", csv([("g h", "x")]))
    table = read_table(str(tmp_path / "d"))
    assert table.texts == ("e f", "a b", "c d") and "without 1 that is not named train; --test" in table.notes[0]
    assert read_table(str(tmp_path / "d"), other=True).texts == ("g h",)
    assert len(read_table(str(tmp_path / "d"), labelled=False)) == 4
    written(tmp_path / "d" / "train-3.csv", "q,category\na,x\n")
    with pytest.raises(DataError, match="has the columns q, category"):
        read_table(str(tmp_path / "d"))


def test_a_folder_of_classes_holds_a_text_a_file(tmp_path: Path) -> None:
    for i in range(4):
        written(tmp_path / "d" / ("train-booking", "lost")[i % 2] / f"{i}.txt", f"text {i}\nin two lines")
    table = read_table(str(tmp_path / "d"))
    assert table.labels == ("lost", "lost", "train-booking", "train-booking")
    assert table.texts[0] == "text 1\nin two lines" and table.notes[0] == "labels from 2 folders, a text a file"
    with pytest.raises(DataError, match="more than one folder deep"):
        read_table(str(tmp_path))


def test_a_list_of_records_serves_every_reader(tmp_path: Path) -> None:
    files = {
        "t.json": {"text": "a", "label": "x"},
        "p.json": {"query": "a", "answer": "b"},
        "c.json": {"prompt": "a", "completion": "b"},
    }
    for name, row in files.items():
        written(tmp_path / name, json.dumps([row, row]))
        written(tmp_path / "lines" / name, "\n".join([json.dumps(row)] * 2))
    for folder in (tmp_path, tmp_path / "lines"):
        assert read_table(str(folder / "t.json")).labels == ("x", "x")
        assert len(read_pairs(str(folder / "p.json"))) == 2
        assert len(read_chats(str(folder / "c.json"))) == 2


def test_pairs_and_conversations_from_folders(tmp_path: Path) -> None:
    for i in range(2):
        written(tmp_path / "p" / f"{i}.csv", f"query,answer\nq{i},a{i}\n")
        written(tmp_path / "c" / f"{i}.jsonl", json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}))
    assert [j.query for j in read_pairs(str(tmp_path / "p")).judgements] == ["q0", "q1"]
    assert len(read_chats(str(tmp_path / "c"))) == 2


def test_the_first_rows_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", "\n".join(json.dumps({"text": f"{i}"}) for i in range(9)))
    assert read_columns(path, most=2).values == {"text": ["0", "1"]}
