"""Tables: types found out, columns learnt of the training part alone, splits, and what is pointed out."""

import zipfile
from pathlib import Path

import numpy as np
import polars
import pytest
import torch

from feedfwd.data.columns import typed
from feedfwd.data.split import split, split_by
from feedfwd.data.table_checks import leaks, shared_rows
from feedfwd.data.table_files import read_rows
from feedfwd.data.table_preprocess import ABSENT, UNKNOWN, TablePreprocessor, drift, from_json
from feedfwd.data.tables import TableData, load_table
from feedfwd.errors import DataError

N = 300


@pytest.fixture
def frame() -> polars.DataFrame:
    generator = np.random.default_rng(0)
    number = generator.normal(size=N)
    start = polars.datetime(2024, 1, 1)
    return polars.DataFrame({"n": number, "c": [("red", "green", "blue")[i % 3] for i in range(N)]}).with_columns(
        polars.when(polars.int_range(N) % 10 == 0).then(None).otherwise(polars.col("n")).alias("n"),
        (start + polars.duration(hours=7 * polars.int_range(N))).alias("d"),
        polars.Series("t", [f"a short text of row {i} with words" for i in range(N)]),
        polars.Series("y", number * 2 + 1),
    )


def test_types_are_found_out_and_survive_every_file_form(frame: polars.DataFrame, tmp_path: Path) -> None:
    frame.write_csv(tmp_path / "t.csv")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    frame.write_parquet(tmp_path / "t.parquet")
    frame.with_columns(polars.col("d").cast(polars.String)).write_ndjson(tmp_path / "t.jsonl")
    for name in ("t.csv", "t.tsv", "t.parquet", "t.jsonl"):
        data = load_table(tmp_path / name, ["y"])
        assert data.kinds == {"n": "number", "c": "category", "d": "date", "t": "text"}, name
        assert data.task == "regress" and len(data) == N and data.frame["n"].null_count() == N // 10
        x = TablePreprocessor.fit(data).examples(data)
        assert bool(x.isfinite().all()) and len(x) == N
    assert "300 rows of 4 columns (1 number, 1 category, 1 date, 1 text)" in data.describe()


def workbook(path: Path, sheets: dict[str, list[list[object]]]) -> Path:
    """A file of Excel's by hand: texts stand in the cells, and what is None has no cell."""

    def cell(row: int, column: int, value: object) -> str:
        place = f'r="{chr(65 + column)}{row + 1}"'
        if isinstance(value, bool):
            return f'<c {place} t="b"><v>{int(value)}</v></c>'
        if isinstance(value, str):
            return f'<c {place} t="inlineStr"><is><t>{value}</t></is></c>'
        return f"<c {place}><v>{value}</v></c>"

    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    numbers = range(1, len(sheets) + 1)
    with zipfile.ZipFile(path, "w") as file:
        parts = "".join(
            f'<Override PartName="/xl/worksheets/sheet{i}.xml" ContentType="{kind}.worksheet+xml"/>' for i in numbers
        )
        file.writestr(
            "[Content_Types].xml",
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override '
            f'PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>{parts}</Types>',
        )
        link = '<Relationship Id="rId{0}" Type="{1}" Target="{2}"/>'
        book = link.format(1, f"{office}/officeDocument", "xl/workbook.xml")
        file.writestr("_rels/.rels", f'<Relationships xmlns="{relations}">{book}</Relationships>')
        links = "".join(link.format(i, f"{office}/worksheet", f"worksheets/sheet{i}.xml") for i in numbers)
        file.writestr("xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{relations}">{links}</Relationships>')
        names = "".join(f'<sheet name="{n}" sheetId="{i}" r:id="rId{i}"/>' for i, n in enumerate(sheets, 1))
        file.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{names}</sheets></workbook>'
        )
        for i, rows in enumerate(sheets.values(), 1):
            lines = "".join(
                f'<row r="{r + 1}">{"".join(cell(r, c, v) for c, v in enumerate(row) if v is not None)}</row>'
                for r, row in enumerate(rows)
            )
            file.writestr(
                f"xl/worksheets/sheet{i}.xml", f'<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>'
            )
    return path


def test_a_sheet_of_excel_is_read_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    rows = [[i / 7 if i % 10 else None, ("red", "green", "blue")[i % 3], i % 2 == 0, i % 2] for i in range(60)]
    data = load_table(workbook(tmp_path / "t.xlsx", {"rows": [["n", "c", "b", "y"], *rows]}), ["y"])
    assert data.kinds == {"n": "number", "c": "category", "b": "category"} and len(data) == 60
    assert data.task == "classify" and data.classes == ("0", "1") and data.frame["n"].null_count() == 6
    assert data.frame["n"][11] == pytest.approx(11 / 7)
    data = load_table(
        workbook(tmp_path / "two.xlsx", {"first": [["n", "y"], *([i, i * 2.5] for i in range(9))], "x": []}), ["y"]
    )
    assert len(data) == 9 and any("of its 2 sheets 'first' is read, not 'x'" in note for note in data.notes)
    with pytest.raises(DataError, match="no sheet with a line of names"):
        load_table(workbook(tmp_path / "none.xlsx", {"rows": []}), ["y"])


def test_titles_notes_and_empty_sheets_of_excel_are_passed_over(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    rows: list[list[object]] = [["n", "c", "y"], *([i, "ab"[i % 2], i * 2.5] for i in range(9))]
    book = {"empty": [], "about": [["what this is"], ["and of when"]], "rows": [["Customers"], [], *rows]}
    data = load_table(workbook(tmp_path / "t.xlsx", book), ["y"])
    assert len(data) == 9 and data.kinds == {"n": "number", "c": "category"}
    assert any("'rows' is read, not 'empty', 'about'" in note for note in data.notes)
    assert any("stand in row 3 of 'rows'" in note for note in data.notes)
    alone = workbook(tmp_path / "one.xlsx", {"empty": [], "n": [["n"], *([i / 7] for i in range(9))]})
    assert read_rows(alone).frame.columns == ["n"] and len(read_rows(alone).frame) == 9  # as `predict` may be given


def test_the_adult_file_needs_no_options(shared_data: Path) -> None:
    data = load_table(shared_data / "tables/adult.csv", ["Salary"])
    assert len(data) == 32_561 and data.classes == ("<=50K", ">50K")
    assert data.frame["workclass"].null_count() == 1836 and data.notes == ("1 blank row left out",)
    assert sum(kind == "number" for kind in data.kinds.values()) == 6


def test_scales_are_robust_smooth_and_of_the_training_part(frame: polars.DataFrame) -> None:
    data = load_table(frame, ["y"], name="t")
    rest, test = split(data, 0.3, seed=0)
    assert isinstance(rest, TableData) and isinstance(test, TableData)
    learnt = TablePreprocessor.fit(rest)
    column = next(c for c in learnt.columns if c.name == "n")
    assert column.middle == pytest.approx(rest.frame["n"].median())
    wild = test.frame.head(2).with_columns(polars.Series("n", [1e30, -1e30]))
    assert learnt.encode(wild)[:, 0].tolist() == pytest.approx([3.0, -3.0], abs=1e-3)
    again = from_json(learnt.to_json())
    assert again is not None and torch.equal(again.examples(test), learnt.examples(test))
    raw = frame[test.rows.numpy()].to_dicts()  # type: ignore[union-attr]
    assert torch.equal(learnt.inputs(raw), learnt.examples(test))


def test_unknown_and_missing_names_have_places(frame: polars.DataFrame) -> None:
    data = load_table(frame.select("n", "c", "y"), ["y"], name="t")
    learnt = TablePreprocessor.fit(data)
    rows = learnt.inputs([{"n": 1, "c": "violet"}, {"n": 1, "c": None}, {"n": 1, "c": "red"}])
    place = learnt.places["c"][0]
    assert rows[:2, place].tolist() == [UNKNOWN, ABSENT] and rows[2, place] >= 2
    assert learnt.layout.categories == (5,) and len(learnt.places["n"]) == 2  # itself, and whether it is missing


def test_dates_go_by_their_cycles(frame: polars.DataFrame) -> None:
    data = load_table(frame.select("d", "y"), ["y"], name="t")
    learnt = TablePreprocessor.fit(data)
    assert learnt.columns[0].parts == ["year", "week", "day"] and learnt.layout.numbers == 1
    circle = learnt.examples(data)[:, 1:].unflatten(1, (3, 2)).square().sum(2)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(circle, torch.ones_like(circle))


@pytest.mark.parametrize(("way", "by"), [("time", "d"), ("group", "c")])
def test_splits_keep_times_in_order_and_groups_together(frame: polars.DataFrame, way: str, by: str) -> None:
    data = load_table(frame, ["y"], by=by, name="t")
    assert by not in data.kinds
    rest, test = split_by(data, 0.34, 0, way)
    assert len(rest) + len(test) == N and 0.25 < len(test) / N < 0.4
    if way == "time":
        assert rest.by.max() < test.by.min()
    else:
        assert not set(rest.by) & set(test.by)


def test_a_leak_and_copied_rows_are_pointed_out() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 400)
    columns = {"fair": generator.normal(size=400), "told": np.where(y == 1, "paid", "due"), "y": y}
    data = load_table(polars.DataFrame(columns), ["y"], name="t")
    assert ["'told' alone tells 100.0 %" in note for note in leaks(data)] == [True]
    value, other = generator.normal(size=2000), generator.normal(size=2000)
    price = polars.DataFrame({"net": value, "part": value + other, "y": 1.5 * value})
    assert len(leaks(load_table(price, ["y"], name="t"))) == 1  # net tells all of y, part half of it
    half = data.subset(torch.arange(200))
    assert not shared_rows(half, data.subset(torch.arange(200, 400)))
    assert "50 test rows" in shared_rows(half, data.subset(torch.arange(150, 250)))[0]


def test_uneven_classes_are_said() -> None:
    frame = polars.DataFrame({"a": range(0, 400, 2), "y": ["rare" if i < 5 else "common" for i in range(200)]})
    assert any("'common' has 195 rows, 'rare' 5" in n for n in load_table(frame, ["y"], name="t").notes)


def test_few_whole_numbers_are_classes_unless_said(frame: polars.DataFrame) -> None:
    graded = frame.with_columns((polars.int_range(N) % 6).alias("y"))
    data = load_table(graded, ["y"], name="t")
    assert data.classes == tuple("012345") and any("data.task=regress" in note for note in data.notes)
    assert load_table(graded, ["y"], task="regress", name="t").task == "regress"


def test_no_drift_is_seen_where_there_is_none(frame: polars.DataFrame) -> None:
    many = polars.concat([frame] * 10).drop("d", "t")
    data = load_table(many, ["y"], name="t")
    rest, test = split(data, 0.3, seed=1)
    assert isinstance(rest, TableData) and isinstance(test, TableData)
    assert drift(TablePreprocessor.fit(rest).columns, test.frame) == []
    moved = test.frame.with_columns(polars.col("n") + 2)
    assert ["n has drifted" in note for note in drift(TablePreprocessor.fit(rest).columns, moved)] == [True]


KINDS = {
    "a version": (["10.12.3", "11.10.4"], "category", None),
    "an address": (["10.12.30.1", "11.10.40.2"], "category", None),
    "a year of two digits": (["5/16/24", "6/7/24"], "date", "2024-05-16"),
    "a year of two digits, the day first": (["16.05.24", "07.06.24"], "date", "2024-05-16"),
    "a month by name": (["16 May 2024", "7 Jun 2024"], "date", "2024-05-16"),
    "a zone": (["2024-05-16T23:00:00+08:00", "2024-06-07T01:00:00Z"], "date", "2024-05-16"),
    "a zone after a space": (["2024-05-16 23:00:00+08:00", "2024-06-07 01:00:00+00:00"], "date", "2024-05-16"),
    "half a day": (["05/16/2024 11:30 PM", "06/07/2024 01:00 AM"], "date", "2024-05-16"),
    "a telephone": (["123-456-7890", "987-654-3210"], "category", None),
    "spaces in thousands": (["5 000", "6 000,5"], "number", "5000.0"),
    "apostrophes in thousands": (["5'000", "6'000.5"], "number", "5000.0"),
    "units": (["-5%", "+3%"], "number", "-5.0"),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_a_column_holds(case: str) -> None:
    cells, kind, first = KINDS[case]
    found = typed(polars.Series("x", cells))
    assert found.kind == kind
    assert first is None or str(found.values[0]).startswith(first)
