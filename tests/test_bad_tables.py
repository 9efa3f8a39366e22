"""Tables that can't be used, and tables that look as if they couldn't: one line that says what, where and what next."""

import datetime
import json
import warnings
from pathlib import Path

import numpy as np
import polars
import pytest

import feedfwd as ff
from feedfwd.config import FitConfig
from feedfwd.data.table_preprocess import TablePreprocessor
from feedfwd.data.tables import TableData, fitted, load_table, read_inputs
from feedfwd.errors import DataError, FeedfwdError
from feedfwd.recipes.fit import fit_config
from feedfwd.recipes.prepare import prepare

GOOD = "a,b,y\n" + "".join(f"{i * 0.7},{'uvw'[i % 3]},{'no' if i % 2 else 'yes'}\n" for i in range(60))


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def loaded(folder: Path, text: str | bytes, target: str = "y", **options: object) -> TableData:
    return load_table(write(folder, text), [target], **options)  # type: ignore[arg-type]


REFUSED = {
    "wrong column": (GOOD, "Y", r"no column 'Y'.*did you mean 'y'"),
    "empty file": ("", "y", "is empty"),
    "blank file": ("\n \n", "y", "is empty"),
    "only a header": ("a,b,y\n", "y", "a header and no rows"),
    "a long row": ("a,y\n1,2\n3,4,5\n6,7\n", "y", r"line 3 has 3 cells where the header has 2"),
    "a short row": ("a,b,y\n1,2,3\n4,5\n6,7,8\n", "y", r"line 3 has 2 cells where the header has 3"),
    "an open quote": ('a,y\n1,2\n"3,4\n5,6\n', "y", r"line \d"),
    "duplicate headers": ("a,a,y\n1,2,3\n4,5,6\n", "y", "two columns named 'a'"),
    "headers equal but for spaces": ("a, a,y\n1,2,3\n4,5,6\n", "y", "two columns named 'a'"),
    "binary": (b"\x00\x01\x02\x89PNG\x00" * 50, "y", "not text"),
    "no target at all": ("a,y\n1,\n2,?\n3,NA\n", "y", "no row has a value in y"),
    "an infinite target": ("a,y\n" + "".join(f"{i},{i}.5\n" for i in range(30)) + "1,inf\n", "y", "no finite numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_read_is_refused_in_a_line(tmp_path: Path, case: str) -> None:
    text, target, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, text, target)


UNTRAINABLE = {
    "one row": ("a,y\n1,2.5\n", "one example"),
    "a constant target": ("a,y\n" + "".join(f"{i},yes\n" for i in range(9)), "one class only"),
    "a constant number": ("a,y\n" + "".join(f"{i / 2},2.5\n" for i in range(9)), "the same number"),
    "every class once": ("a,y\n" + "".join(f"{i % 7},n{i}\n" for i in range(10_000)), "fewer than two each"),
    "no column is left": ("a,y\n" + "".join(f"7,{i % 2}\n" for i in range(40)), "no column to predict from"),
    "all columns empty": ("a,b,y\n" + "".join(f",?,{i % 2}\n" for i in range(40)), "no column to predict from"),
}


@pytest.mark.parametrize("case", UNTRAINABLE)
def test_nothing_to_learn_is_said(tmp_path: Path, case: str) -> None:
    text, message = UNTRAINABLE[case]
    with pytest.raises(DataError, match=message):
        prepare(FitConfig(source=write(tmp_path, text), target=["y"]))


def test_an_unnamed_target_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"which column.*--target COLUMN; columns: a, b, z"):
        load_table(write(tmp_path, GOOD.replace("a,b,y", "a,b,z")))
    assert load_table(write(tmp_path, GOOD)).target_names == ("y",)  # a usual name is taken, and said


def test_another_encoding_is_guessed_and_said(tmp_path: Path) -> None:
    western = "stadt,y\n" + "".join(f"{'Köln' if i % 3 else 'Zürich'},{i % 2}\n" for i in range(30))
    data = loaded(tmp_path, western.encode("latin-1"))
    assert "Köln" in data.frame["stadt"].to_list()
    assert any("not UTF-8 (line 2): read as cp1252" in note for note in data.notes)
    chinese = "城市,y\n" + "".join(f"{'北京' if i % 3 else '上海'},{i % 2}\n" for i in range(30))
    assert "北京" in loaded(tmp_path, chinese.encode("gb18030")).frame["城市"].to_list()
    assert "北京" in loaded(tmp_path, chinese.encode("utf-16")).frame["城市"].to_list()


def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    data = loaded(tmp_path, "a;y\n" + "".join(f"{i},5;{'ja' if i % 2 else 'nein'}\n" for i in range(20)))
    assert data.frame["a"].to_list()[:2] == [0.5, 1.5]
    assert any("separated by ;" in note for note in data.notes) and any("decimal commas" in n for n in data.notes)


def test_thousands_and_units(tmp_path: Path) -> None:
    rows = "".join(f'"1,{i:03}",{i}%,{i % 2}\n' for i in range(0, 40, 2)) + '"2,001",3%,1\n'
    data = loaded(tmp_path, "a,b,y\n" + rows)
    assert data.kinds == {"a": "number", "b": "number"} and data.frame["a"][0] == 1000


def test_infinite_numbers_count_as_missing(tmp_path: Path) -> None:
    data = loaded(tmp_path, GOOD.replace("0.7,v", "inf,v"))
    assert data.frame["a"].null_count() == 1 and any("1 infinite cells of a" in note for note in data.notes)


def test_a_few_words_among_numbers(tmp_path: Path) -> None:
    data = loaded(tmp_path, GOOD.replace("0.7,v", "tall,v"))
    assert data.kinds["a"] == "number" and any("such as 'tall'" in note for note in data.notes)


def test_blank_rows_and_rows_without_target_are_counted(tmp_path: Path) -> None:
    data = loaded(tmp_path, GOOD + "\n,,\n1.5,u,?\n")
    assert len(data) == 60
    assert any("2 blank rows" in n for n in data.notes) and any("1 without a target row" in n for n in data.notes)


def test_identifiers_constants_and_empty_columns_are_left_out_by_name(tmp_path: Path) -> None:
    rows = "".join(f"{i},k{i},7,,{i % 5},{i % 2}\n" for i in range(50))
    data = loaded(tmp_path, "row,key,same,none,x,y\n" + rows)
    assert list(data.kinds) == ["x"]
    said = " ".join(data.notes)
    assert "identifier: row, key" in said and "constant: same" in said and "empty: none" in said


def test_a_thousand_columns_train(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 1000))
    frame = polars.DataFrame(x, schema=[f"c{i}" for i in range(1000)])
    frame.with_columns(polars.Series("y", np.where(x[:, 0] > 0, "p", "n"))).write_csv(tmp_path / "wide.csv")
    config = FitConfig(source=str(tmp_path / "wide.csv"), target=["y"]).with_("train.epochs", 1)
    assert prepare(config.with_("model.hidden", [8])).predictor.preprocess.width == 1000


def test_several_targets_have_to_be_of_one_kind(tmp_path: Path) -> None:
    source = write(tmp_path, GOOD)
    with pytest.raises(DataError, match="all numbers or all yes or no: 'a' holds numbers; 'y' holds yes or no"):
        load_table(source, ["a", "y"])
    with pytest.raises(DataError, match="'y' holds yes or no; 'b' holds 3 names"):
        load_table(source, ["y", "b"])
    with pytest.raises(DataError, match="have to be all numbers: 'y' holds yes or no"):
        load_table(source, ["y", "b"], task="regress")
    with pytest.raises(DataError, match="have to be yes or no each: 'a' holds numbers"):
        load_table(source, ["a", "y"], task="classify")
    with pytest.raises(DataError, match="twice"):
        load_table(source, ["y", "y"])


def test_names_cannot_be_predicted_as_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds names, not numbers"):
        loaded(tmp_path, GOOD, task="regress")


def test_columns_to_drop_and_to_split_by_have_to_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'bb', which data.drop names"):
        loaded(tmp_path, GOOD, drop=["bb"])
    with pytest.raises(DataError, match=r"'when', which --split names"):
        loaded(tmp_path, GOOD, by="when")
    with pytest.raises(DataError, match="is the target"):
        loaded(tmp_path, GOOD, by="y")


def test_bad_splits_and_settings_for_other_sources(tmp_path: Path) -> None:
    with pytest.raises(FeedfwdError, match="none of random"):
        FitConfig(source="x.csv").with_("data.split", "weekly")
    with pytest.raises(FeedfwdError, match="--target is for tables"):
        prepare(FitConfig(source="digits", target=["y"]))
    one_group = "g,a,y\n" + "".join(f"1,{i / 2},{i % 2}\n" for i in range(30))
    with pytest.raises(DataError, match="too few to split by"):
        prepare(FitConfig(source=write(tmp_path, one_group), target=["y"]).with_("data.split", "group:g"))
    with pytest.raises(FeedfwdError, match="names of categories"):
        prepare(FitConfig(source=write(tmp_path, GOOD), target=["y"]).with_("data.mixup", 0.2))


def test_broken_json_lines_name_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2 is not JSON"):
        load_table(write(tmp_path, '{"a": 1, "y": 2}\n{"a": 1,\n', "t.jsonl"), ["y"])
    with pytest.raises(DataError, match="line 1 is no record"):
        load_table(write(tmp_path, "[1, 2]\n", "t.jsonl"), ["y"])


def json_lines(folder: Path, *rows: dict[str, object]) -> str:
    return write(folder, "\n".join(json.dumps(row) for row in rows), "t.jsonl")


def test_records_within_rows_are_spread_and_lists_are_named(tmp_path: Path) -> None:
    rows = [{"a": {"u": i / 2, "v": {"w": "xyz"[i % 3]}}, "tags": [i], "y": i % 2} for i in range(9)]
    data = load_table(json_lines(tmp_path, *rows), ["y"])
    assert data.kinds == {"a.u": "number", "a.v.w": "category"}
    assert any("lists, which no network takes: tags" in note for note in data.notes)
    with pytest.raises(DataError, match=r"no column to predict from \(left out as lists"):
        load_table(json_lines(tmp_path, *({"a": [i], "y": i % 2} for i in range(9))), ["y"])
    with pytest.raises(DataError, match="target 'y' holds lists"):
        load_table(json_lines(tmp_path, *({"a": i, "y": [i % 2]} for i in range(9))), ["y"])
    assert list(load_table(polars.DataFrame(rows), ["y"]).kinds) == ["a.u", "a.v.w"]


def dated(form: str, n: int = 90) -> str:
    days = (datetime.date(2023, 1, 1) + datetime.timedelta(days=i * 3 % 700) for i in range(n))
    return "d,x,y\n" + "".join(f"{day:{form}},{i * 0.7},{i % 2}\n" for i, day in enumerate(days))


def days_of(data: TableData, text: str, folder: Path) -> list[str]:
    frame, _ = read_inputs(write(folder, text, "new.csv"), {"d": "date"}, "new", data.forms)
    return [str(day)[:10] for day in frame["d"].to_list()]


def test_dates_keep_the_form_of_training(tmp_path: Path) -> None:
    day_first = loaded(tmp_path, dated("%d/%m/%Y"))
    assert day_first.forms == {"d": "%d/%m/%Y"} and not any("leave open" in note for note in day_first.notes)
    assert days_of(day_first, "d\n02/01/2024\n03/01/2024\n", tmp_path) == ["2024-01-02", "2024-01-03"]
    month_first = loaded(tmp_path, dated("%m/%d/%Y"))
    assert days_of(month_first, "d\n02/01/2024\n03/01/2024\n", tmp_path) == ["2024-02-01", "2024-03-01"]
    with_chinese = loaded(tmp_path, dated("%Y年%m月%d日"))
    assert days_of(with_chinese, "d\n2024年1月5日\n", tmp_path) == ["2024-01-05"]


def test_dates_in_another_form_than_in_training_are_read_and_said(tmp_path: Path) -> None:
    data, notes = loaded(tmp_path, dated("%Y-%m-%d")), list[str]()
    new = polars.DataFrame({"d": ["31.01.2024", "01.02.2024"]})
    frame = fitted(new, {"d": "date"}, "new", notes, forms=data.forms)
    assert [day.day for day in frame["d"].to_list()] == [31, 1]
    assert notes == ["d: dates as day.month.year, in training dates as year-month-day"]


def test_dates_that_leave_their_form_open_are_pointed_out(tmp_path: Path) -> None:
    data = loaded(tmp_path, "d,x,y\n" + "".join(f"{1 + i % 12}/{1 + i % 7}/2024,{i},{i % 2}\n" for i in range(60)))
    assert any("month/day/year, which its cells leave open" in note for note in data.notes)


def test_odd_cells_among_dates_are_missing_and_counted(tmp_path: Path) -> None:
    data = loaded(tmp_path, dated("%Y-%m-%d").replace("2023-01-04", "soon").replace("2023-01-07", "0000-00-00"))
    assert data.kinds["d"] == "date" and data.frame["d"].null_count() == 2
    assert any("2 cells of d are no dates and count as missing, such as 'soon'" in note for note in data.notes)


def test_decimal_commas_are_those_of_training(tmp_path: Path) -> None:
    data = loaded(tmp_path, "a;y\n" + "".join(f"{i}.{i:03},5;{i % 2}\n" for i in range(1, 40)) + "7,25;1\n")
    assert data.forms == {"a": "comma"}

    def read(cell: str) -> float | None:
        found: float | None = fitted(polars.DataFrame({"a": [cell]}), {"a": "number"}, "x", forms=data.forms)["a"][0]
        return found

    assert [read(cell) for cell in ("1,234", "1.234", "12", "2,5 €", "1.5")] == [1.234, 1234.0, 12.0, 2.5, 1.5]
    mixed = fitted(polars.DataFrame({"a": ["1,5", "k.A."]}), {"a": "number"}, "x", forms=data.forms)
    assert mixed["a"].to_list() == [1.5, None]


def test_odd_cells_among_decimal_commas_and_units(tmp_path: Path) -> None:
    rows = "".join(f"{i},5;{i},25 €;1 {i + 100} 000,5;{i % 2}\n" for i in range(1, 60)) + "viel;3,5 €;1 100 000;1\n"
    data = loaded(tmp_path, "a;b;c;y\n" + rows)
    assert data.kinds == {"a": "number", "b": "number", "c": "number"}
    assert data.frame["a"].null_count() == 1 and data.frame["b"][0] == 1.25 and data.frame["c"][0] == 1_101_000.5


WORDS_FOR_NOTHING = ["NA", "n/a", "?", "-", "none", "Null", "缺失", "None", "N.A.", "#DIV/0!", "missing", "unknown"]


def test_words_for_nothing_are_missing_but_may_be_classes(tmp_path: Path) -> None:
    rows = "".join(
        f"{WORDS_FOR_NOTHING[i // 2 % 12] if i % 2 else i},{i * i},{'none' if i % 3 else 'some'}\n" for i in range(72)
    )
    data = loaded(tmp_path, "a,b,y\n" + rows)
    assert data.kinds["a"] == "number" and data.frame["a"].null_count() == 36
    assert data.classes == ("none", "some") and len(data) == 72


def test_texts_without_spaces_are_texts(tmp_path: Path) -> None:
    said = ["这家酒店的房间很干净服务也非常好", "早餐不好吃而且前台态度很差", "位置方便离地铁站很近下次还会来"]
    rows = "".join(f"{said[i % 3]}{i},{['北京', '上海', '広州'][i % 3]},{i},{i % 2}\n" for i in range(60))
    data = loaded(tmp_path, "t,c,x,y\n" + rows.replace("60,", "61,"))
    assert data.kinds["t"] == "text" and data.kinds["c"] == "category"
    words = next(c.names for c in TablePreprocessor.fit(data).columns if c.name == "t")
    assert "店" in words and all(len(word) == 1 or word.isdigit() for word in words)


def test_lines_that_end_in_cr_and_separators_within_cells(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, GOOD.replace("\n", "\r"))) == 60
    odd = loaded(tmp_path, GOOD.replace(",u,", ',"u\u2028x",').replace(",v,", ',"v\ny",'))
    assert len(odd) == 60 and "u\u2028x" in odd.frame["b"].to_list()
    assert len(loaded(tmp_path, GOOD.encode("utf-16-le"))) == 60


def test_types_of_parquet_are_read_again_as_they_were(tmp_path: Path) -> None:
    hours = [datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=7 * i) for i in range(60)]
    zoned = polars.Series(hours).dt.replace_time_zone("Asia/Shanghai")
    columns = {
        "price": polars.Series([str(i / 4) for i in range(60)]).cast(polars.Decimal(10, 2)),
        "at": zoned,
        "took": [datetime.timedelta(minutes=i * i) for i in range(60)],
        "time": [datetime.time(i % 24) for i in range(60)],
        "list": [[i] for i in range(60)],
        "y": [i % 2 for i in range(60)],
    }
    polars.DataFrame(columns).write_parquet(tmp_path / "t.parquet")
    data = load_table(tmp_path / "t.parquet", ["y"])
    assert data.kinds == {"price": "number", "at": "date", "took": "number", "time": "category"}
    again, notes = read_inputs(tmp_path / "t.parquet", data.kinds, "t", data.forms)
    assert again.equals(data.frame) and notes == []


def test_a_column_by_its_number_and_a_table_without_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'b', column 2"):
        loaded(tmp_path, GOOD, "2")
    with pytest.raises(DataError, match="the first line has to name the columns"):
        loaded(tmp_path, GOOD.partition("\n")[2])
    with pytest.raises(DataError, match="no column to predict from beside the target"):
        loaded(tmp_path, "y\n1\n0\n1\n0\n")
    with pytest.raises(DataError, match="holds dates"):
        loaded(tmp_path, dated("%Y-%m-%d"), "d")
    assert loaded(tmp_path, GOOD, " y ").target_names == ("y",)


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        load_table(write(tmp_path, GOOD, "t.parquet"), ["y"])
    with pytest.raises(FeedfwdError, match=r"can't be read as a sheet|fastexcel"):
        load_table(write(tmp_path, GOOD, "t.xlsx"), ["y"])
    with pytest.raises(DataError, match="there is no file"):
        load_table(str(tmp_path / "none.csv"), ["y"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load_table(str(tmp_path / "folder.csv"), ["y"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    config = FitConfig(source=write(folder, GOOD), target=["y"], effort="quick")
    for key, value in (("train.epochs", 2), ("model.hidden", [8])):
        config = config.with_(key, value)
    fit_config(config, folder / "run")
    return folder / "run"


def test_rows_of_another_table_are_refused_or_warned_of(run: Path) -> None:
    predictor = ff.load(run)
    with pytest.raises(DataError, match=r"no column 'b', which the model names"):
        predictor.predict([{"a": 1.0}])
    with pytest.raises(DataError, match=r"'a' held numbers in training and holds none here \(such as 'high'\)"):
        predictor.predict([{"a": "high", "b": "u"}, {"a": "low", "b": "v"}])
    with pytest.raises(DataError, match="not rows with named columns"):
        predictor.predict(np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"no columns|no rows"):
        predictor.predict(polars.DataFrame({"a": [], "b": []}))
    with pytest.warns(UserWarning, match=r"1 cells .* no numbers"):
        predictor.predict([{"a": "1.5", "b": "u"}, {"a": "low", "b": "v"}])
    with pytest.warns(UserWarning, match="names new to it"):
        predictor.predict({"a": [float(i % 42) for i in range(200)], "b": ["new"] * 200})
    with pytest.warns(UserWarning, match="a has drifted"):
        predictor.predict({"a": [1000.0 + i for i in range(200)], "b": ["u", "v", "w", "u"] * 50})


def test_rows_that_fit_are_not_warned_of(run: Path) -> None:
    predictor = ff.load(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = predictor.predict([{"b": None, "a": None, "more": 1}, {"a": "3,5", "b": " u "}, {"a": 1, "b": "?"}])
    assert len(answers) == 3 and set(answers) <= {"yes", "no"}


def test_a_damaged_preprocess_file_is_said(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run/preprocess.json"
    file.write_text(file.read_text().replace('"columns"', '"rows"'))
    with pytest.raises(DataError, match=r"preprocess\.json is damaged"):
        ff.load(tmp_path / "run")
