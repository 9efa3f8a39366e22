"""What a user gets for what can't work: one line that says what, where and what next, exit status 2, nothing lost."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import call

Case = tuple[str, Callable[[Path], list[str]], str]
QUICK = ["--effort", "quick", "--set", "train.steps=3"]


def idx(path: Path, array: np.ndarray, magic: int | None = None) -> None:
    header = struct.pack(">I", magic or 0x0800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def mnist(folder: Path, n: int = 40) -> Path:
    """A small, whole set of IDX files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", n), ("t10k", 10)):
        idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 6, 6)))
        idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder


def images(folder: Path, sizes: tuple[int, ...] = (4, 4, 4)) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def npz(path: Path, **arrays: object) -> str:
    rng = np.random.default_rng(0)
    whole = {"x": rng.normal(size=(60, 4)).astype(np.float32), "y": np.arange(60) % 3, **arrays}
    np.savez(path, **{name: value for name, value in whole.items() if value is not None})  # type: ignore[arg-type]
    return str(path)


def finished(folder: Path) -> str:
    path = folder / "done"
    assert call("fit", "iris", "--run", str(path), *QUICK) == 0
    return str(path)


def broken(name: str, text: str | None, verb: str = "predict") -> Callable[[Path], list[str]]:
    """A finished run in which one file is replaced, or is gone."""

    def make(folder: Path) -> list[str]:
        run = finished(folder)
        (Path(run) / name).unlink() if text is None else (Path(run) / name).write_text(text)
        return [verb, run, "iris"] if verb == "predict" else [verb, run]

    return make


def fit(*argv: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["fit", *argv]


def setting(text: str, source: str = "iris") -> Callable[[Path], list[str]]:
    return fit(source, "--set", text)


def written(name: str, content: bytes, *more: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return ["fit", str(folder / name), *more]

    return make


def damaged_mnist(damage: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        data = mnist(folder / "mnist")
        damage(data)
        return ["fit", "mnist", "--data-dir", str(data)]

    return make


def odd_images(damage: Callable[[Path], object], sizes: tuple[int, ...] = (4, 4, 4)) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        data = images(folder / "pets", sizes)
        damage(data)
        return ["fit", str(data)]

    return make


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def arrays(**given: object) -> Callable[[Path], list[str]]:
    return lambda folder: ["fit", npz(folder / "data.npz", **given)]


def locked(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["fit", "iris", "--run", str(folder / "file" / "run"), *QUICK]


def newer(folder: Path) -> list[str]:
    run = finished(folder)
    config = Path(run) / "config.toml"
    config.write_text(config.read_text().replace("format = 1", "format = 99"))
    return ["predict", run, "iris"]


def other_width(folder: Path) -> list[str]:
    np.save(folder / "wide.npy", np.zeros((3, 7), np.float32))
    return ["predict", finished(folder), str(folder / "wide.npy")]


def no_state(folder: Path) -> list[str]:
    return ["fit", "--resume", finished(folder)]


def taken(folder: Path) -> list[str]:
    return ["fit", "iris", "--run", finished(folder), *QUICK]


def other_test(folder: Path) -> list[str]:
    return ["fit", npz(folder / "a.npz"), "--test", npz(folder / "b.npz", x=np.zeros((60, 9), np.float32))]


def toml(text: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "settings.toml").write_text(text)
        return ["fit", "iris", "--config", str(folder / "settings.toml")]

    return make


nan, big = np.full((60, 4), np.nan, np.float32), np.full((60, 4), np.inf, np.float32)
noise = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
CASES: list[Case] = [
    # sources
    ("no source", fit(), "SOURCE"),
    ("a name with a slip", fit("digit"), "digits"),
    ("a path that isn't there", fit("no/such/data.npz"), "no/such/data.npz"),
    ("an empty file", written("data.npz", b""), "data.npz"),
    ("not an npz", written("data.npz", b"hello there"), "data.npz"),
    ("a form that isn't read", written("data.xyz", b"1 2 3"), "data.xyz"),
    ("an empty folder", lambda f: [(f / "e").mkdir(), ["fit", str(f / "e")]][1], "e"),
    ("no data folder", fit("mnist", "--data-dir", "nowhere"), "nowhere"),
    ("a data folder without the files", lambda f: ["fit", "mnist", "--data-dir", str(f)], "IDX"),
    ("truncated gzip", damaged_mnist(lambda d: cut(d / "train-images-idx3-ubyte.gz", 200)), "train-images"),
    ("corrupted gzip", damaged_mnist(lambda d: flip(d / "train-images-idx3-ubyte.gz")), "train-images"),
    ("an empty IDX", damaged_mnist(lambda d: (d / "train-images-idx3-ubyte.gz").write_bytes(b"")), "train-images"),
    (
        "a wrong magic number",
        damaged_mnist(lambda d: idx(d / "train-images-idx3-ubyte.gz", np.zeros((40, 6, 6)), magic=7)),
        "train-images",
    ),
    (
        "a wrong length",
        damaged_mnist(
            lambda d: (d / "train-labels-idx1-ubyte.gz").write_bytes(
                gzip.compress(struct.pack(">2I", 0x801, 40) + bytes(12))
            )
        ),
        "train-labels",
    ),
    (
        "more labels than images",
        damaged_mnist(lambda d: idx(d / "train-labels-idx1-ubyte.gz", np.arange(41) % 10)),
        "41",
    ),
    ("labels missing", damaged_mnist(lambda d: (d / "train-labels-idx1-ubyte.gz").unlink()), "train-labels"),
    ("text among images", odd_images(lambda d: (d / "cat" / "notes.txt").write_text("meow")), "notes.txt"),
    ("images of two sizes", odd_images(lambda d: None, sizes=(4, 4, 5)), "size"),
    ("one class of images", odd_images(lambda d: [p.unlink() for p in (d / "dog").iterdir()]), "dog"),
    ("a broken image", odd_images(lambda d: cut(d / "cat" / "0.png", 30)), "0.png"),
    ("one class only", arrays(y=np.zeros(60, np.int64)), "one class"),
    ("NaN among the inputs", arrays(x=nan), "finite"),
    ("infinity among the inputs", arrays(x=big), "finite"),
    ("no targets", arrays(y=None), "x"),
    ("fewer targets than inputs", arrays(y=np.arange(59) % 3), "59"),
    ("Python objects", arrays(y=np.array([{}] * 60, dtype=object)), "objects"),
    ("inputs of text", arrays(x=np.array([["a"] * 4] * 60)), "x"),
    ("a class for each example", arrays(y=np.arange(60)), "60"),
    ("constant targets", arrays(y=np.full(60, 1.5, np.float32)), "same"),
    ("no examples", arrays(x=noise[:0], y=np.zeros(0, np.int64)), "(0,)"),
    ("a test part of another width", other_test, "b.npz"),
    # settings
    ("an unknown key", setting("train.batchsize=3"), "train.batch_size"),
    ("no key at all", setting("hello"), "key=value"),
    ("a rate of nan", setting("optimizer.lr=nan"), "optimizer.lr"),
    ("a negative rate", setting("optimizer.lr=-1"), "optimizer.lr"),
    ("a layer of no units", setting("model.hidden=[0]"), "model.hidden"),
    ("hidden sizes of text", setting("model.hidden=big"), "model.hidden"),
    ("an impossible size", setting("model.hidden=[4000000000]"), "memory"),
    ("an unknown activation", setting("ffn.activation=rellu"), "relu"),
    ("an unknown scheme", setting("ffn.init=he"), "he_normal"),
    ("an unknown optimizer", setting("optimizer.name=adamm"), "adam"),
    ("a module that isn't there", setting("ffn.kind=no_such_module:Layer"), "no_such_module"),
    ("a batch of nothing", setting("train.batch_size=0"), "train.batch_size"),
    ("a device that isn't here", setting("train.device=cuda:7"), "train.device"),
    ("a loss for numbers", setting("loss.name=mse"), "loss.name"),
    ("one logit for three classes", setting("loss.name=binary_cross_entropy"), "3 classes"),
    ("weights of another number", setting("loss.class_weights=[1.0]"), "class_weights"),
    ("deforming what is no image", setting("data.deform.rotation=5"), "image"),
    ("all held back", setting("data.validation=1.0"), "data.validation"),
    ("a fold that isn't there", fit("iris", "--set", "data.folds=3", "--set", "data.fold=3"), "data.fold"),
    ("two lengths", fit("iris", "--minutes", "1", "--set", "train.steps=5"), "train.steps"),
    ("no minutes", fit("iris", "--minutes", "0"), "minutes"),
    ("an unknown effort", fit("iris", "--effort", "huge"), "effort"),
    ("a negative seed", fit("iris", "--seed", "-1"), "seed"),
    ("no settings file", fit("iris", "--config", "nowhere.toml"), "nowhere.toml"),
    ("a settings file that is no TOML", toml("a = = 1"), "settings.toml"),
    ("a settings file with a slip", toml("[train]\nepoch = 3\n"), "train.epochs"),
    # runs
    ("no run", lambda f: ["predict", str(f / "nowhere"), "iris"], "nowhere"),
    ("a folder that is no run", lambda f: ["evaluate", str(f)], "config.toml"),
    ("a run that exists", taken, "never overwritten"),
    ("no way to write", locked, "can't be written"),
    ("resuming what is finished", no_state, "finished"),
    ("resuming with settings", lambda f: ["fit", "iris", "--resume", str(f)], "--resume"),
    ("a run of a newer version", newer, "newer"),
    ("weights gone", broken("model.safetensors", None), "model.safetensors"),
    ("weights damaged", broken("model.safetensors", "none"), "model.safetensors"),
    ("scales gone", broken("preprocess.json", None), "preprocess.json"),
    ("scales damaged", broken("preprocess.json", "{"), "preprocess.json"),
    ("settings damaged", broken("config.toml", "[", "evaluate"), "config.toml"),
    ("result damaged", broken("result.json", "{", "info"), "result.json"),
    ("inputs of another width", other_width, "7"),
    ("predictions of an unknown form", lambda f: ["predict", finished(f), "iris", "--out", "a.docx"], "a.docx"),
    ("predicting for nothing", lambda f: ["predict", finished(f), str(f / "nothing.npy")], "nothing.npy"),
    ("classes it never saw", lambda f: ["evaluate", finished(f), "wine"], "wine"),
    ("information on nothing", lambda f: ["info", "nothing"], "nothing"),
]


@pytest.mark.parametrize(("make", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_gets_one_clear_line(
    make: Callable[[Path], list[str]],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = make(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert call(*argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in lines[0], lines
    assert says in lines[0]
    assert ": " in lines[0].removeprefix("error: "), "what next is missing"
    assert len(lines[0]) < 400
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, "files changed"


def test_nothing_is_half_written_when_training_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    sets = ["--set", "optimizer.name=sgd", "--set", "optimizer.lr=1e30", "--set", "train.epochs=3"]
    assert call("fit", "diabetes", "--run", str(run), *sets) == 2
    assert "update 2 of" in capsys.readouterr().err
    assert not (run / "result.json").exists() and not list(run.rglob("*.part"))
    lines = (run / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)
