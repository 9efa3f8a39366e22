"""What bad data get: one line that says what is wrong, where, and what next. One row of the table is one case."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feedfwd.data.arrays import as_inputs, from_arrays
from feedfwd.data.dataset import Dataset
from feedfwd.data.preprocess import Preprocessor
from feedfwd.data.readers import load, load_inputs
from feedfwd.data.split import fold, split
from feedfwd.errors import DataError

X, Y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3


def npz(folder: Path, **arrays: object) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def idx(values: np.ndarray, magic: int | None = None) -> bytes:
    header = (0x0800 + values.ndim if magic is None else magic).to_bytes(4, "big")
    return header + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.astype(np.uint8).tobytes()


def mnist(folder: Path, **changed: bytes | None) -> Path:
    """A folder of small IDX files, with the named ones changed or (None) left out."""
    images, labels = np.arange(10 * 4 * 4).reshape(10, 4, 4) % 251, np.arange(10) % 2
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = changed.get(f"{part}_{kind[:6]}", idx(array))
            if content is not None:
                (folder / f"{part}-{kind}-ubyte").write_bytes(content)
    return folder


def zipped(folder: Path, change: Callable[[bytes], bytes]) -> str:
    mnist(folder, train_images=None)
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(change(gzip.compress(idx(images))))
    return str(folder)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def image(path: Path, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).save(path)


def pets(folder: Path) -> Path:
    for i in range(3):
        image(folder / "cat" / f"{i}.png")
        image(folder / "dog" / f"{i}.png")
    return folder


def written(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def with_text(folder: Path) -> str:
    written(pets(folder) / "cat" / "notes.txt", "not a picture")
    return str(folder)


def with_another_size(folder: Path) -> str:
    image(pets(folder) / "dog" / "9.png", (7, 5))
    return str(folder)


def with_damaged_image(folder: Path) -> str:
    path = pets(folder) / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    return str(folder)


def with_empty_class(folder: Path) -> str:
    (pets(folder) / "bird").mkdir()
    return str(folder)


def with_nested_class(folder: Path) -> str:
    image(pets(folder) / "dog" / "more" / "1.png")
    return str(folder)


def with_new_test_class(folder: Path) -> str:
    pets(folder / "train")
    image(folder / "test" / "wolf" / "1.png")
    return str(folder)


def with_other_test_size(folder: Path) -> str:
    pets(folder / "train")
    image(folder / "test" / "cat" / "1.png", (9, 9))
    return str(folder)


def without_classes(folder: Path) -> str:
    image(folder / "1.png")
    return str(folder)


def with_nan(value: float) -> np.ndarray:
    x = X.copy()
    x[3, 2] = value
    return x


LOAD: dict[str, tuple[Callable[[Path], str], str]] = {
    # sources that aren't there
    "missing file": (lambda f: str(f / "no.npz"), r"no file or folder .*no\.npz"),
    "unknown name": (lambda f: "mnits", r"'mnits' is neither.*did you mean 'mnist'\?.*\.npz file"),
    "empty folder": (lambda f: str(f), "has no class folders"),
    "a form that isn't known": (lambda f: written(f / "a.docx", "?"), r"a\.docx is not of a form"),
    # npz
    "empty npz": (lambda f: written(f / "a.npz", b""), r"a\.npz is empty"),
    "npz that is none": (lambda f: written(f / "a.npz", b"hello there"), r"a\.npz is not an \.npz file"),
    "npz cut short": (lambda f: written(f / "a.npz", Path(npz(f, x=X, y=Y)).read_bytes()[:-40]), r"a\.npz is damaged"),
    "npz with a flipped bit": (
        lambda f: written(f / "a.npz", flip(Path(npz(f, x=X, y=Y)).read_bytes(), 300)),
        "damaged",
    ),
    "npz with objects": (lambda f: npz(f, x=X, y=np.array([{}] * 12)), "holds Python objects.*could run code"),
    "npz without inputs": (lambda f: npz(f, y=Y, weights=X), "holds y, weights: no inputs and targets"),
    "npz without targets": (lambda f: npz(f, x=X), "holds x: no inputs and targets"),
    "npz of nothing": (lambda f: npz(f), "holds no arrays"),
    "different lengths": (lambda f: npz(f, x=X, y=Y[:-1]), "x of data has 12 rows but y has 11"),
    "no rows": (lambda f: npz(f, x=X[:0], y=Y[:0]), r"shape \(0,\)"),
    "no columns": (lambda f: npz(f, x=X[:, :0], y=Y), "x of data is empty"),
    "a single axis": (lambda f: npz(f, x=X[:, 0], y=Y), r"x of data has shape \(12,\).*\(N, 1\)"),
    "too many axes": (lambda f: npz(f, x=np.zeros((12, 2, 2, 2, 2)), y=Y), "shape .*inputs are one row"),
    "no colour axis": (lambda f: npz(f, x=np.zeros((12, 5, 5, 5)), y=Y), "no axis of 1, 3 or 4 colours"),
    "NaN inputs": (lambda f: npz(f, x=with_nan(np.nan), y=Y), r"1 value not finite.*nan at \[3, 2\]"),
    "infinite inputs": (lambda f: npz(f, x=with_nan(-np.inf), y=Y), r"not finite.*-inf"),
    "inputs beyond float32": (lambda f: npz(f, x=with_nan(1e300), y=Y), "not finite in float32"),
    "NaN targets": (lambda f: npz(f, x=X, y=with_nan(np.nan)[:, 2]), "y of data has 1 value not finite"),
    "text inputs": (lambda f: npz(f, x=np.array([["a", "b"]] * 12), y=Y), "x of data holds str.* values, not numbers"),
    "complex inputs": (lambda f: npz(f, x=X + 1j, y=Y), "complex128 values, not numbers"),
    "several labels": (lambda f: npz(f, x=X, y=np.ones((12, 3), int)), "several classes for each example"),
    "several names": (lambda f: npz(f, x=X, y=np.array([["a", "b"]] * 12)), "several names for each example"),
    "unknown test class": (
        lambda f: npz(f, x_train=X, y_train=Y, x_test=X, y_test=Y + 1),
        "class '3', which the train",
    ),
    "wider test part": (lambda f: npz(f, x_train=X, y_train=Y, x_test=X[:, :3], y_test=Y), "not of the kind"),
    # IDX
    "IDX with a wrong magic number": (
        lambda f: str(mnist(f, train_images=idx(np.zeros((10, 4, 4)), 0x0D03))),
        "00000d03",
    ),
    "IDX labels where images belong": (lambda f: str(mnist(f, train_images=idx(np.zeros(10)))), "00000801.*00000803"),
    "IDX cut short": (lambda f: str(mnist(f, t10k_images=idx(np.zeros((10, 4, 4)))[:-5])), "171 bytes, where .* 176"),
    "IDX too long": (lambda f: str(mnist(f, train_labels=idx(np.zeros(10)) + b"..")), r"20 bytes, where .* 18 \(10\)"),
    "IDX of a header only": (lambda f: str(mnist(f, train_images=b"\0\0\x08\x03\0\0")), "6 bytes, where"),
    "empty IDX": (lambda f: str(mnist(f, train_labels=b"")), "train-labels-idx1-ubyte is empty"),
    "more images than labels": (lambda f: str(mnist(f, train_labels=idx(np.zeros(9)))), "10 images but .* 9 labels"),
    "no IDX labels": (lambda f: str(mnist(f, train_labels=None)), "has no train-labels-idx1-ubyte"),
    "no IDX test labels": (lambda f: str(mnist(f, t10k_labels=None)), "has no t10k-labels-idx1-ubyte"),
    "gzip cut short": (lambda f: zipped(f, lambda raw: raw[:-20]), r"ubyte\.gz is a damaged gzip file"),
    "gzip with a flipped bit": (
        lambda f: zipped(f, lambda raw: flip(raw, len(raw) // 2)),
        r"ubyte\.gz is a damaged gzip",
    ),
    "gzip with a wrong checksum": (lambda f: zipped(f, lambda raw: flip(raw, len(raw) - 6)), "CRC check failed"),
    "gzip of nothing": (lambda f: zipped(f, lambda raw: gzip.compress(b"")), "begins with nothing"),
    # images by class
    "a text file among images": (with_text, r"cat/notes\.txt is not an image"),
    "images of different sizes": (with_another_size, r"dog/9\.png is 7×5 pixels but .*cat/0\.png is 6×5"),
    "a damaged image": (with_damaged_image, r"dog/1\.png is a damaged image"),
    "a class without images": (with_empty_class, "bird is empty"),
    "a folder inside a class": (with_nested_class, "more is a folder inside a class"),
    "images without classes": (without_classes, "no class folders.*into a folder of its name"),
    "a test class that is new": (with_new_test_class, "class 'wolf', which the training data don't have"),
    "test images of another size": (with_other_test_size, "test 9×9 grey"),
}


def data(x: np.ndarray = X, y: np.ndarray = Y) -> Dataset:
    return from_arrays("data", x, y)


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)

USE: dict[str, tuple[Callable[[Path], object], str]] = {
    # a built-in set and --data-dir
    "--data-dir that is missing": (lambda f: load("mnist", data_dir=f / "no"), r"--data-dir .*no is not a folder"),
    "--data-dir without the files": (lambda f: load("fashion_mnist", data_dir=f), "no IDX files of fashion_mnist in"),
    # nothing to learn from
    "one class only": (lambda f: Preprocessor.fit(data(y=np.zeros(12, int))), "one class only, '0'"),
    "a class for each example": (
        lambda f: Preprocessor.fit(data(y=np.arange(12))),
        "12 classes for 12 examples.*floats",
    ),
    "one example": (lambda f: Preprocessor.fit(data(X[:1], Y[:1])), "one example"),
    "inputs all the same": (lambda f: Preprocessor.fit(data(np.ones((12, 4)))), "all inputs are the same"),
    "targets all the same": (lambda f: Preprocessor.fit(data(y=np.full(12, 0.5))), "all targets are the same"),
    # splits
    "a split of nothing": (lambda f: split(data(), 0.01, 0), "leaves 0 and 12"),
    "a split of classes of one": (lambda f: split(data(y=np.arange(12)), 0.5, 0), "every class .* one example only"),
    "a split of everything": (lambda f: split(data(), 1.0, 0), "leaves 12 and 0"),
    "more folds than examples": (lambda f: fold(data(), 13, 0, 0), "fold 0 of 13 from 12 examples"),
    "a fold that isn't there": (lambda f: fold(data(), 3, 3, 0), "fold 3 of 3"),
    # data at predict and evaluate
    "arrays of another width": (
        lambda f: Preprocessor.fit(data()).inputs(X[:, :3]),
        "examples of 3 numbers, but .* takes 4",
    ),
    "images of another size": (lambda f: Preprocessor.fit(data(PIXELS)).inputs(PIXELS[:, 1:]), "3×4 .*takes 4×4"),
    "one row without its axis": (lambda f: Preprocessor.fit(data()).inputs(X[0]), r"shape \(4,\).*\(1, D\)"),
    "NaN at predict": (lambda f: Preprocessor.fit(data()).inputs(with_nan(np.nan)), "the input has 1 value not finite"),
    "pixels of 0 to 1": (
        lambda f: Preprocessor.fit(data(PIXELS)).inputs(PIXELS / 255),
        r"up to 0\.\d+, but .* up to 249",
    ),
    "pixels of 0 to 255": (
        lambda f: Preprocessor.fit(data(PIXELS / 255)).inputs(PIXELS),
        r"up to 249, but .* up to 0\.",
    ),
    "an unknown class": (lambda f: Preprocessor.fit(data()).targets(data(y=Y + 1)), "class '3', which"),
    "numbers in place of classes": (lambda f: Preprocessor.fit(data()).targets(data(y=X[:, 0])), "trained on classes"),
    "classes in place of numbers": (
        lambda f: Preprocessor.fit(data(y=X[:, 0])).targets(data()),
        "trained on real numbers",
    ),
    "other targets": (lambda f: Preprocessor.fit(data(y=X[:, 0])).targets(data(y=X)), "the model predicts 1"),
    "damaged preprocess.json": (lambda f: Preprocessor.from_json('{"shape": [4]'), "preprocess.json is damaged"),
    "incomplete preprocess.json": (lambda f: Preprocessor.from_json('{"shape": [4]}'), "preprocess.json is damaged"),
    "a .npy of objects": (lambda f: load_inputs(saved(f, np.array([{}]))), "not a .npy file of plain numbers"),
    "an .npz without inputs": (lambda f: load_inputs(npz(f, a=X, b=X)), "holds a, b: no inputs"),
    "a folder without images": (lambda f: load_inputs(str(f)), "has no images"),
    "something that is no image": (lambda f: load_inputs(written(f / "a.txt", "hello")), r"a\.txt is not an image"),
    "decimals beyond float32": (
        lambda f: as_inputs(torch.full((2, 2), 1e300, dtype=torch.float64), "x"),
        "4 values not",
    ),
}


def saved(folder: Path, array: np.ndarray) -> str:
    np.save(folder / "a.npy", array)
    return str(folder / "a.npy")


@pytest.mark.parametrize("case", LOAD)
def test_a_source_that_cannot_be_loaded(case: str, tmp_path: Path) -> None:
    make, expected = LOAD[case]
    source = make(tmp_path)
    with pytest.raises(DataError) as caught:
        load(source)
    check(caught.value, expected)


@pytest.mark.parametrize("case", USE)
def test_data_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    use, expected = USE[case]
    with pytest.raises(DataError) as caught:
        use(tmp_path)
    check(caught.value, expected)


def check(error: DataError, expected: str) -> None:
    message = str(error)
    assert re.search(expected, message), message
    assert "\n" not in message and len(message) < 400, message
    assert error.hint, "says what next"


def test_a_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path, x=X, y=Y)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # chmod wouldn't stop an administrator
    with pytest.raises(DataError, match=r"data\.npz can't be read \(Permission denied\)"):
        load(path)
