"""From what a user names to a data set: a path, else a name that is built in, else an error that says what exists."""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from feedfwd.data.arrays import as_inputs, from_arrays
from feedfwd.data.builtin import BUILTINS, load_builtin
from feedfwd.data.dataset import Dataset
from feedfwd.data.idx import holds_idx, read_bytes, read_idx, read_idx_folder
from feedfwd.data.images import decode, read_image_folder, read_images
from feedfwd.errors import DataError, nearest

FORMS = "a .npz file, a folder of images by class, or a folder of IDX files"
INPUT_NAMES = ("x", "inputs", "images", "features", "data")
TARGET_NAMES = ("y", "targets", "labels", "target", "label")


class Unlabelled(NamedTuple):
    """Raw inputs to predict for, and the examples' file names where they have any."""

    inputs: Tensor
    files: tuple[str, ...] | None = None


def load(source: str, *, data_dir: str | Path | None = None) -> tuple[Dataset, Dataset | None]:
    """The training part of a source, and its own test part if it has one.

    `source` is a path (a .npz file, a folder of images by class, a folder of IDX files) or a built-in name; a path that
    exists wins. `data_dir` is where the files of a built-in set are, and is never left for the network.
    """
    path = Path(source)
    if path.is_dir():
        name = path.resolve().name
        return read_idx_folder(path, name) if holds_idx(path) else read_image_folder(path.resolve())
    if path.suffix == ".npz" and path.exists():
        return _read_npz(path)
    if path.exists():
        raise DataError(f"{path} is not of a form that can be trained on", hint=f"give {FORMS}")
    if source in BUILTINS:
        return load_builtin(source, None if data_dir is None else Path(data_dir))
    raise _unknown(source)


def load_inputs(source: str, *, data_dir: str | Path | None = None) -> Unlabelled:
    """What to predict for: inputs alone, of every form that `load` takes, with no need of targets.

    Also a .npy file, one image, a folder of images, an IDX file of images. Of a source with parts it is the test part.
    """
    path = Path(source)
    if path.is_dir() and not holds_idx(path):
        images, files = read_images(path)
        return Unlabelled(as_inputs(images, source), files)
    if path.is_file():
        if path.suffix in (".npz", ".npy"):
            return Unlabelled(as_inputs(_inputs_alone(path), source))
        if "idx3-ubyte" in path.name:
            return Unlabelled(as_inputs(read_idx(path, axes=3), source))
        return Unlabelled(as_inputs(decode(path, source)[None], source), (path.name,))
    train, test = load(source, data_dir=data_dir)
    return Unlabelled((test or train).inputs)


def _read_npz(path: Path) -> tuple[Dataset, Dataset | None]:
    arrays = _open_npz(path)
    x, y = _pick(arrays, INPUT_NAMES, ""), _pick(arrays, TARGET_NAMES, "")
    if x is None or y is None:
        x, y = _pick(arrays, INPUT_NAMES, "train"), _pick(arrays, TARGET_NAMES, "train")
    if x is None or y is None:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'no arrays'}: no inputs and targets among them",
            hint="name them x and y, or x_train, y_train, x_test, y_test",
        )
    train = from_arrays(path.stem, arrays[x], arrays[y], x_name=x, y_name=y)
    note, test = f"took {x} as inputs and {y} as targets", None
    x_test, y_test = _pick(arrays, INPUT_NAMES, "test"), _pick(arrays, TARGET_NAMES, "test")
    if x_test and y_test:
        test = from_arrays(path.stem, arrays[x_test], arrays[y_test], x_name=x_test, y_name=y_test)
        if test.inputs.shape[1:] != train.inputs.shape[1:] or test.task != train.task:
            raise DataError(
                f"{path}: {x_test}, {y_test} are not of the kind of {x}, {y} "
                f"(shapes {tuple(test.inputs.shape)} and {tuple(train.inputs.shape)}, {test.task} and {train.task})",
                hint="both parts need the same columns and the same kind of targets",
            )
        note += f", {x_test} and {y_test} as the test part"
        if train.classes is not None:
            test = test.recode(train.classes)
    unused = sorted(arrays.keys() - {x, y, x_test if test else None, y_test if test else None})
    note += f"; not used: {', '.join(unused)}" if unused else ""
    return replace(train, notes=(note, *train.notes)), test


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    if read_bytes(path)[:2] != b"PK":
        raise DataError(f"{path} is not an .npz file", hint="write it with numpy.savez(path, x=..., y=...)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects, which are not loaded: they could run code",
                hint="store plain arrays of numbers or text",
            ) from None
        raise DataError(f"{path} holds an array that can't be read ({error})", hint="write it again") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error})", hint="write or fetch it again") from None


def _inputs_alone(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        read_bytes(path)
        try:
            array: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is not a .npy file of plain numbers ({error})", hint="write it again") from None
        return array
    arrays = _open_npz(path)
    name = _pick(arrays, INPUT_NAMES, "") or _pick(arrays, INPUT_NAMES, "test")
    if name is None and len(arrays) == 1:
        name = next(iter(arrays))
    if name is None:
        raise DataError(f"{path} holds {', '.join(arrays) or 'no arrays'}: no inputs among them", hint="name them x")
    return arrays[name]


def _pick(arrays: dict[str, np.ndarray], names: tuple[str, ...], part: str) -> str | None:
    """The first of `names` that the file has, as x, x_train, train_x or xtrain, in any case."""
    held = {name.lower(): name for name in arrays}
    for name in names:
        for spelling in (f"{name}_{part}", f"{part}_{name}", f"{name}{part}") if part else (name,):
            if spelling in held:
                return held[spelling]
    return None


def _unknown(source: str) -> DataError:
    if "/" in source or "\\" in source or Path(source).suffix:
        return DataError(f"there is no file or folder {source}", hint=f"check the path; sources are {FORMS}")
    return DataError(
        f"{source!r} is neither a file or folder here nor a built-in data set",
        hint=f"{nearest(source, BUILTINS)}; or give {FORMS}",
    )
