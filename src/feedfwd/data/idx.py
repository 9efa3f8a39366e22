"""IDX files, the format MNIST came in: two zero bytes, a type, the number of axes, their lengths, the values."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from feedfwd.data.arrays import from_arrays
from feedfwd.data.dataset import Dataset
from feedfwd.errors import DataError

UNSIGNED_BYTE = 0x08
PARTS = {"train": "train", "t10k": "test"}


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, gzipped or not; `axes` is 3 for images, 1 for labels."""
    raw = read_bytes(path)
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is a damaged gzip file ({error})", hint="fetch it again") from None
    magic = bytes([0, 0, UNSIGNED_BYTE, axes])
    if raw[:4] != magic:
        raise DataError(
            f"{path} begins with {raw[:4].hex() or 'nothing'}, where IDX {'images' if axes == 3 else 'labels'} "
            f"begin with {magic.hex()}",
            hint="check that the file is what its name says",
        )
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        sizes = "×".join(f"{n:,}" for n in shape)
        raise DataError(
            f"{path} has {len(raw):,} bytes, where its header promises {expected:,} ({sizes})", hint="fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def holds_idx(folder: Path) -> bool:
    """Whether a folder has training images in IDX form."""
    return folder.is_dir() and _find(folder, "train", "images") is not None


def read_idx_folder(folder: Path, name: str) -> tuple[Dataset, Dataset | None]:
    """The training part and, if it is there, the test part of a folder of IDX files named as MNIST's are."""
    found: dict[str, tuple[Path, Path]] = {}
    for prefix, part in PARTS.items():
        images, labels = _find(folder, prefix, "images"), _find(folder, prefix, "labels")
        if images and labels:
            found[part] = images, labels
        elif images or labels or part == "train":
            missing = f"{prefix}-labels-idx1-ubyte" if images else f"{prefix}-images-idx3-ubyte"
            raise DataError(f"{folder} has no {missing} or {missing}.gz", hint="put it beside the other IDX files")
    train = _read_part(name, *found["train"])
    test = _read_part(name, *found["test"]).recode(train.classes or ()) if "test" in found else None
    return train, test


def _read_part(name: str, images: Path, labels: Path) -> Dataset:
    x, y = read_idx(images, axes=3), read_idx(labels, axes=1)
    if len(x) != len(y):
        raise DataError(
            f"{images} has {len(x):,} images but {labels.name} has {len(y):,} labels",
            hint="take both files from the same set",
        )
    return from_arrays(name, x, y, x_name=images.name, y_name=labels.name)


def _find(folder: Path, prefix: str, kind: str) -> Path | None:
    """`train-images-idx3-ubyte`, with `.idx3` as some copies have it, gzipped or not."""
    dims = 3 if kind == "images" else 1
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{prefix}-{kind}{separator}idx{dims}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def read_bytes(path: Path) -> bytes:
    """A file's content, or DataError: missing, unreadable, empty."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})", hint="check the path and its permissions") from None
    if not raw:
        raise DataError(f"{path} is empty", hint="fetch or write it again")
    return raw
