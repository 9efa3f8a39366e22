"""The page of a run: complete, self-contained, safe with any name, and there without matplotlib too."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from feedfwd.errors import RunError
from feedfwd.evaluate import classification_scores, details, regression_scores
from feedfwd.report import write_report

EVIL = "<script>alert('cat')</script>"
VOID = {"meta", "link", "br", "img"}
INLINE = {"b", "code", "i", "small", "span"}


class Page(HTMLParser):
    """The page's text, tags, and whatever it would load; fails where a tag is left open or closed twice."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag not in INLINE:
            self.text += " "

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def write_run(folder: Path, *, result: dict | None = None, events: list[dict] | None = None) -> Path:
    """A run directory of a small classifier, as `fit` leaves it."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 400)
    logits = generator.normal(size=(400, 3))
    logits[np.arange(400), y] += 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    images = generator.integers(0, 256, (400, 8, 8), dtype=np.uint8)
    scores = classification_scores(p, y)
    whole = {
        "format": 1,
        "task": "multiclass",
        "source": "pets",
        "validation": scores,
        "test": scores,
        "test_details": details(p, y, classes=["dog", "bird", EVIL], images=images),
        "seconds": {"train": 12.34, "total": 75.0},
        "steps": 600,
        "examples_per_second": 91_234.5,
        "parameters": 118_282,
        "flops": 1.4e12,
        "seed": 7,
        "sizes": {"train": 3000, "validation": 500, "test": 400},
        "notes": ["The rate came from a range test."],
        "command": "feedfwd fit pets --seed 7",
        "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu", "precision": "fp32", "threads": 2},
    }
    log = [
        {"event": "start", "time": 1764000000.0, "source": "pets", "task": "multiclass"},
        {"event": "range_test", "lrs": [1e-4, 1e-3, 1e-2, 1e-1], "losses": [2.3, 2.0, 1.0, None], "suggested": 0.003},
        *(
            {"event": "step", "step": n, "loss": 2 / n + 0.01 * (n % 7), "lr": 0.003 / n, "grad_norm": 1 + n % 3}
            for n in range(1, 601)
        ),
        *({"event": "validation", "step": n, "scores": {"loss": 1 / n, **scores}} for n in range(100, 601, 100)),
        {"event": "finding", "step": 42, "finding": "Half of layer 2 is dead.", "advice": "Try ffn.activation=gelu."},
        {"event": "end"},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(whole | (result or {})))
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (log if events is None else events)))
    (folder / "config.toml").write_text(f'source = "pets"\nname = "{EVIL}"\n\n[optimizer]\nlr = 0.003\n')
    return folder


def test_the_page_holds_what_a_reader_looks_for(tmp_path):
    run = write_run(tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    path = write_report(run)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    text = squeezed(page.text)
    accuracy = f"{100 * result['test']['accuracy']:.1f}%"
    low, high = (f"{100 * end:.1f}" for end in result["test_details"]["intervals"]["accuracy"])
    for expected in (
        f"pets · {accuracy} accuracy",  # the title
        f"accuracy on 400 test examples 95% interval {low} – {high}% · always answering the commonest class",
        "train 3,000 validation 500 test 400",
        "parameters 118,282 steps 600 seed 7 FLOPs 1.4 T",
        "training 12.3 s in all 1 min 15 s examples/s 91.2 k",
        "device cpu precision fp32 threads 2",
        "November 2025",
        "Half of layer 2 is dead. step 42 Try ffn.activation=gelu.",
        "The rate came from a range test.",
        "macro F1",
        "calibration error",
        "Rows are the truth, columns the answer.",
        "feedfwd fit pets --seed 7",
        "[optimizer] lr = 0.003",
        "torch 2.13.0",
        "chosen: 0.003",
    ):
        assert expected in text, expected
    assert page.tags.count("svg") == 6  # loss, score, rate, gradient, range test, calibration
    assert page.tags.count("img") == 20
    confusion = result["test_details"]["confusion"]
    cells = re.findall(r'<td class="(?:right|wrong)" style="--heat: [\d.]+">(\d*)</td>', html)
    assert [int(c or 0) for c in cells] == [n for row in confusion for n in row]
    assert sorted(p.name for p in run.iterdir()) == ["config.toml", "log.jsonl", "report.html", "result.json"]


def test_nothing_in_the_page_points_outside_or_runs(tmp_path):
    html = write_report(write_run(tmp_path / "run", result={"source": EVIL, "notes": [EVIL]})).read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert EVIL in page.text
    assert EVIL not in html
    assert all(link.startswith(("data:", "#")) for link in page.links), page.links
    assert not re.search(r"https?://|@import|url\((?!#)|//cdn", html)
    assert "default-src 'none'" in html


def test_drawings_take_the_pages_colours_and_keep_their_ids_apart(tmp_path):
    html = write_report(write_run(tmp_path / "run")).read_text()
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    ids = [name for svg in drawings for name in re.findall(r' id="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in drawings:
        assert "var(--first)" in svg or "var(--second)" in svg
        assert not re.search(r"(?:fill|stroke|color): #", svg.replace("url(#", ""))
        assert "font-family" not in svg
        assert "<style" not in svg
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
        assert used <= set(re.findall(r' id="([^"]+)"', svg))
    assert html.count("prefers-color-scheme: dark") == 1


def test_the_same_run_gives_the_same_page(tmp_path):
    first, second = (write_report(write_run(tmp_path / name)).read_bytes() for name in ("a", "b"))
    assert first == second


def test_without_matplotlib_there_are_tables_and_a_word_on_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(write_report(write_run(tmp_path / "run")).read_text())
    assert "svg" not in page.tags
    text = squeezed(page.text)
    assert 'pip install "feedfwd[report]"' in text
    assert "step loss accuracy" in text  # the validation table
    assert "confidence examples mean confidence right" in text  # the calibration table
    assert page.tags.count("img") == 20


def test_a_resumed_run_counts_its_repeated_steps_once_and_a_cut_line_not_at_all(tmp_path):
    from feedfwd.report.report import _by_step, _events

    run = write_run(tmp_path / "run")
    lines = [{"event": "step", "step": n, "loss": loss, "lr": 0.1} for n, loss in ((1, 4), (2, 3), (2, 2.5), (3, 2))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "log.jsonl").write_text(text[:30] + "\n" + text[text.index("\n") + 1 :] + '{"event": "step", "st')
    assert [(e["step"], e["loss"]) for e in _by_step(_events(run), "step")] == [(2, 2.5), (3, 2)]
    assert "<svg" in write_report(run).read_text()


def test_a_log_of_numbers_that_are_not_finite_still_gives_a_page(tmp_path):
    events = [
        {"event": "range_test", "lrs": [1e-3], "losses": [float("nan")], "suggested": 0.003},
        {"event": "step", "step": 1, "loss": float("nan"), "lr": 0.1, "grad_norm": float("inf")},
        {"event": "validation", "step": 1, "scores": {"loss": None, "accuracy": float("nan")}},
    ]
    page = Page(write_report(write_run(tmp_path / "run", events=events)).read_text())
    assert page.tags.count("svg") == 2  # the rate, and calibration


def test_a_regression_shows_predictions_and_errors(tmp_path):
    generator = np.random.default_rng(1)
    y = generator.normal(size=(90, 2)) * [1, 100]
    p = y + generator.normal(size=(90, 2)) * [0.2, 20]
    result = {
        "task": "regression",
        "validation": None,
        "test": regression_scores(p, y),
        "test_details": details(p, y, names=["height", EVIL]),
        "sizes": {"train": 300, "validation": 0, "test": 90},
    }
    html = write_report(write_run(tmp_path / "run", result=result, events=[])).read_text()
    page = Page(html)
    text = squeezed(page.text)
    assert "RMSE on 90 test examples" in text
    assert "always answering the mean would reach" in text
    assert "Largest errors" in text
    assert "Confusion" not in text
    assert page.tags.count("svg") == 2
    assert EVIL in page.text and EVIL not in html
    assert "validation" not in text  # no empty column for what the run doesn't have


def test_many_classes_show_the_commonest_mistakes_in_place_of_a_matrix(tmp_path):
    generator = np.random.default_rng(2)
    y = generator.integers(0, 60, 900)
    p = generator.dirichlet(np.ones(60), 900)
    result = {"test": classification_scores(p, y), "test_details": details(p, y, classes=[f"c{k}" for k in range(60)])}
    text = squeezed(Page(write_report(write_run(tmp_path / "run", result=result)).read_text()).text)
    assert "true answered times of its class" in text
    assert "The 30 of 60 classes with the lowest F1." in text
    assert "Rows are the truth" not in text


@pytest.mark.parametrize("parts", [("validation",), ()])
def test_a_run_without_a_test_part_says_so(tmp_path, parts):
    scores = {"accuracy": 0.9, "log_loss": 0.3}
    result = {"test": None, "test_details": None, "validation": scores if parts else None}
    text = squeezed(Page(write_report(write_run(tmp_path / "run", result=result, events=[])).read_text()).text)
    if parts:
        assert "90.0% accuracy on 500 validation examples No test part was kept" in text
    else:
        assert "No scores" in text


def test_what_cannot_be_shown_says_what_to_do(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "result.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match="upgrade feedfwd"):
        write_report(run)
    (run / "result.json").write_text('{"format": 1, "test": {')
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        write_report(run)
    (run / "result.json").unlink()
    with pytest.raises(RunError, match="--resume"):
        write_report(run)


def test_the_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    write_report(run)
    before = (run / "report.html").read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert sorted(p.name for p in run.iterdir()) == ["config.toml", "log.jsonl", "report.html", "result.json"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_from_a_file_without_complaint(tmp_path, width):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium")
    from PIL import Image

    path, shot = write_report(write_run(tmp_path / "run")), tmp_path / "page.png"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    done = subprocess.run(
        [
            *(browser, *flags.split(), "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3000"),
            *(f"--screenshot={shot}", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr  # where a refused resource or a broken style would be reported
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape == (3000, width)
    assert (pixels < 128).mean() > 0.005  # something is written
    assert (pixels[:, -12:] > 240).all()  # and nothing sticks out to the right


def test_a_calibration_figure_has_the_title_it_is_given() -> None:
    from feedfwd.report import figures

    bins = [{"low": 0.5, "high": 1.0, "n": 10, "confidence": 0.8, "accuracy": 0.7, "interval": [0.4, 0.9]}]
    assert figures.calibration_figure(bins, "Before the temperature", "before").title == "Before the temperature"
