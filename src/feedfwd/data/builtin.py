"""Data sets known by name: scikit-learn's small ones, which need no download, and the two MNISTs."""

from pathlib import Path

import numpy as np

from feedfwd.data.arrays import as_inputs, as_targets
from feedfwd.data.dataset import Dataset
from feedfwd.data.hub import fetch_images
from feedfwd.data.idx import holds_idx, read_idx_folder
from feedfwd.errors import DataError

SKLEARN = ("digits", "iris", "wine", "breast_cancer", "diabetes")
MNIST = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}  # where the hub has them
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
BUILTINS = (*SKLEARN, *MNIST)


def load_builtin(name: str, data_dir: Path | None) -> tuple[Dataset, Dataset | None]:
    """The training part of a data set known by name, and its own test part if it has one.

    `data_dir` is where MNIST's files are, and is never left for the network; without it they come from the hub.
    """
    if name in SKLEARN:
        return _load_sklearn(name), None
    if data_dir is None:
        return fetch_images(name, MNIST[name], name, CLASSES[name])
    train, test = read_idx_folder(_idx_folder(name, data_dir), name)
    return _named(train), test and _named(test)


def _load_sklearn(name: str) -> Dataset:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    if name == "digits":  # 8×8 images of 17 grey levels
        return Dataset(
            name,
            as_inputs(bunch.images.astype(np.uint8), name),
            as_targets(bunch.target, name).values,
            "classify",
            CLASSES["mnist"],
        )
    inputs, features = as_inputs(bunch.data, name), tuple(bunch.feature_names)
    if name == "diabetes":
        targets = as_targets(bunch.target, name).values
        return Dataset(name, inputs, targets, "regress", None, features, ("disease progression",))
    classes = tuple(str(c) for c in bunch.target_names)
    return Dataset(name, inputs, as_targets(bunch.target, name).values, "classify", classes, features)


def _idx_folder(name: str, data_dir: Path) -> Path:
    """`data_dir` itself, or its subfolder of the data set's name."""
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a folder", hint=f"give the folder that holds {name}'s IDX files")
    for folder in (data_dir / name, data_dir / name.replace("_", "-"), data_dir):
        if holds_idx(folder):
            return folder
    raise DataError(
        f"no IDX files of {name} in {data_dir} or {data_dir / name}",
        hint="it should hold train-images-idx3-ubyte.gz and its three siblings; "
        f"without --data-dir {name} is fetched from the Hugging Face hub",
    )


def _named(data: Dataset) -> Dataset:
    """With the classes' names in place of their numbers."""
    names = CLASSES[data.name]
    data = data.recode(CLASSES["mnist"])
    return Dataset(data.name, data.inputs, data.targets, "classify", names)
