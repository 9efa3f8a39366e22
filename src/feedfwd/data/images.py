"""Image files: one folder for each class, any format that Pillow reads."""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from feedfwd.data.dataset import Dataset
from feedfwd.errors import DataError

LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # what file managers leave behind


def decode(source: Path | BinaryIO, where: str) -> np.ndarray:
    """One image as uint8: (H, W) if it is grey, else (H, W, 3). Turned upright; transparency is laid on white."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel
                return (np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)
            if image.mode in ("1", "L"):
                return np.array(image.convert("L"))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"{where} is not an image", hint="a class folder may hold images only; move it away") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is a damaged image ({error})", hint="replace or remove it") from None


def stack(images: list[np.ndarray], names: list[str]) -> np.ndarray:
    """All images as one array (N, H, W) or, if any has colour, (N, H, W, 3). They must be of one size."""
    sizes = [image.shape[:2] for image in images]
    for name, size in zip(names, sizes, strict=True):
        if size != sizes[0]:
            (h, w), (h0, w0) = size, sizes[0]
            raise DataError(
                f"{name} is {w}×{h} pixels but {names[0]} is {w0}×{h0}", hint="bring all images to one size first"
            )
    if len({image.ndim for image in images}) > 1:
        images = [image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2) for image in images]
    return np.stack(images)


def read_image_folder(folder: Path) -> tuple[Dataset, Dataset | None]:
    """Images by class; or, in subfolders `train` and `test`, the two parts, each by class."""
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train = _read_classes(folder / "train", folder.name)
        test = _read_classes(folder / "test", f"{folder.name}/test").recode(train.classes or ())
        if train.inputs.shape[1:] != test.inputs.shape[1:]:
            raise DataError(
                f"{folder}/train has {_shape(train)} images, {folder}/test {_shape(test)}",
                hint="bring all images to one size and colour mode",
            )
        return train, test
    return _read_classes(folder, folder.name), None


def read_images(folder: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """All images in a folder, by class or not, and their names: for prediction, where no class is needed."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _litter(path))
    if not paths:
        raise DataError(f"{folder} has no images", hint="give a folder of image files")
    names = [path.relative_to(folder).as_posix() for path in paths]
    return stack([decode(path, str(path)) for path in paths], names), tuple(names)


def read_parquet(path: Path, name: str, classes: tuple[str, ...]) -> Dataset:
    """Images as the Hugging Face hub keeps them: a column `image` of encoded files, a column `label` of numbers."""
    import polars

    try:
        table = polars.read_parquet(path, columns=["image", "label"])
        files, labels = table["image"].struct.field("bytes").to_list(), table["label"].to_torch()
    except (polars.exceptions.PolarsError, OSError) as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{path} is not a parquet file of images and labels ({problem})", hint="delete it") from None
    images = [decode(io.BytesIO(file), f"image {i} of {path.name}") for i, file in enumerate(files)]
    inputs = stack(images, [f"image {i}" for i in range(len(images))])
    return Dataset(name, torch.from_numpy(inputs), labels.long(), "classify", classes)


def _read_classes(folder: Path, name: str) -> Dataset:
    entries = [path for path in sorted(folder.iterdir()) if not _litter(path)]
    folders = sorted((path for path in entries if path.is_dir()), key=_numeric_first)
    if not folders:
        raise DataError(f"{folder} has no class folders", hint="put the images of each class into a folder of its name")
    unused = len(entries) - len(folders)
    images, labels, files = [], [], []
    for label, class_folder in enumerate(folders):
        members = [path for path in sorted(class_folder.iterdir()) if not _litter(path)]
        if not members:
            raise DataError(f"{class_folder} is empty", hint="add images of the class, or remove the folder")
        for path in members:
            where = path.relative_to(folder).as_posix()
            if path.is_dir():
                raise DataError(f"{path} is a folder inside a class", hint="a class folder holds images only")
            images.append(decode(path, str(path)))
            labels.append(label)
            files.append(where)
    inputs, targets = torch.from_numpy(stack(images, [str(folder / file) for file in files])), torch.tensor(labels)
    notes = (
        (f"not used: {unused} file{'s' if unused > 1 else ''} beside the class folders of {folder}",) if unused else ()
    )
    classes = tuple(path.name for path in folders)
    return Dataset(name, inputs, targets, "classify", classes, files=tuple(files), notes=notes)


def _litter(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in LITTER


def _numeric_first(path: Path) -> tuple[int, str]:
    """Order of class folders: 2 before 10, and numbers before names."""
    return (int(path.name), "") if path.name.isdecimal() else (2**63, path.name)


def _shape(data: Dataset) -> str:
    height, width, *channels = data.inputs.shape[1:]
    return f"{width}×{height} " + ("colour" if channels else "grey")
