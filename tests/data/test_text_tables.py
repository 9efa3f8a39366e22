"""Texts with labels, from every form of table."""

from pathlib import Path

import polars
import pytest

from feedfwd.data.text_tables import read_table, shared_texts
from feedfwd.errors import DataError

ROWS = {"text": ["where is my card", "top up failed", "card lost"], "category": ["card", "money", "card"]}


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_gives_the_same_table(tmp_path: Path, form: str) -> None:
    path, frame = tmp_path / f"t.{form}", polars.DataFrame(ROWS)
    match form:
        case "csv":
            frame.write_csv(path)
        case "tsv":
            frame.write_csv(path, separator="\t")
        case "jsonl":
            frame.write_ndjson(path)
        case _:
            frame.write_parquet(path)
    table = read_table(str(path))
    assert table.texts == tuple(ROWS["text"]) and table.labels == tuple(ROWS["category"])
    assert (table.text, table.target) == ("text", "category")


def test_lines_of_text_at_label_in_latin_1(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("Täglich a@b.com wächst es .@positive\nLoss grew .@negative\n".encode("latin-1"))
    table = read_table(str(path))
    assert table.texts == ("Täglich a@b.com wächst es .", "Loss grew .") and table.labels == ("positive", "negative")
    assert read_table(str(path), labelled=False).texts[1] == "Loss grew .@negative"


def test_columns_are_guessed_by_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"{i},what was said in row {i} by someone,{'ab'[i % 2]}\n" for i in range(8))
    path.write_text("id,said,kind\n" + rows, encoding="utf-8")
    table = read_table(str(path))
    assert (table.text, table.target) == ("said", "kind")
    assert "text from column 'said', labels from 'kind'" in table.notes


def test_blank_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('text,label\na b,x\n"  ",y\nc d,\ne f,y\n', encoding="utf-8")
    table = read_table(str(path))
    assert table.texts == ("a b", "e f") and table.rows == (0, 3)
    assert "2 rows without text or label left out" in table.notes


def test_numbers_as_labels_and_doubtful_data_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label,review\n" + "1,很好的酒店\n" * 20 + "0,差\n0,很好的酒店\n", encoding="utf-8")
    table = read_table(str(path))
    assert set(table.labels or ()) == {"0", "1"} and table.text == "review"
    assert any("uneven" in note for note in table.notes)
    assert any("more than one label" in note for note in table.notes)


def test_shared_texts_ignore_case_and_spaces() -> None:
    assert shared_texts(["A  b", "c"], ["x", "a b", "C "]) == [1, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\n", "no rows"),
        ("", "empty"),
        ("text\na\nb\n", "labels are missing"),
        ("a,b\n1,2\n3,4\n", "no column of text"),
        ("text,label\n , \n", "no column of text"),
        ("text,label\na,\nb,\n", "no row with text and label"),
        ("text,title\n" + "".join(f"t{i},of {i}\n" for i in range(60)), "no column that looks like labels"),
        ("text,label\n" + "".join(f"{i},of {i % 2}\n" for i in range(9)), "no column of text beside 'label'"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_table(str(path))


def test_an_absent_column_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,category\na,x\nb,y\n", encoding="utf-8")
    with pytest.raises(DataError, match="did you mean 'category'"):
        read_table(str(path), target="catgory")
    with pytest.raises(DataError, match="--text"):
        read_table(str(path), text="txt")


def test_a_column_of_numbers_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"text {i},{i / 7:.3f},{'ab'[i % 2]},x{i}" for i in range(60)]
    path.write_text("\n".join(["text,price", *(row.rsplit(",", 2)[0] for row in rows)]), encoding="utf-8")
    assert (read_table(str(path)).numbers or ())[7] == 1.0
    path.write_text("\n".join(["text,price,label,code", *rows]), encoding="utf-8")
    assert read_table(str(path)).target == "label"
    assert read_table(str(path), kinds=("number",)).target == "price"
    path.write_text("\n".join(["text,price,label,cost", *(row[: row.rindex(",")] + ",2" for row in rows)]))
    with pytest.raises(DataError, match=r"2 columns of numbers beside 'text' \(columns: price, cost\): say which"):
        read_table(str(path), kinds=("number",))


def test_an_empty_cell_of_several_labels_is_an_empty_list(tmp_path: Path) -> None:
    cells, lists = ["x;y", "", "y", "x"], [["x", "y"], [], ["y"], ["x"]]
    path = tmp_path / "t.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{cell}\n" for i, cell in enumerate(cells)), encoding="utf-8")
    polars.DataFrame({"text": [f"text {i}" for i in range(4)], "label": lists}).write_ndjson(tmp_path / "t.jsonl")
    table = read_table(str(path))
    assert table.sets == read_table(str(tmp_path / "t.jsonl")).sets == tuple(map(frozenset, lists))
    assert any("1 text has no label, which is learnt too" in note for note in table.notes)
