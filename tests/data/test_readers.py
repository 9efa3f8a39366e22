"""Every form of source arrives as the data set that was meant."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feedfwd.data.readers import load, load_inputs

RNG = np.random.default_rng(0)


def idx(values: np.ndarray) -> bytes:
    header = (0x0800 + values.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(
    folder: Path, *, zipped: bool = False, separator: str = "-", first: int = 0, test: bool = True
) -> np.ndarray:
    """IDX files of ten images of ten classes, the first pixel of the first image being `first`; the images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.arange(10 * 3 * 4).reshape(10, 3, 4)
    images[0, 0, 0] = first
    for part in ("train", "t10k")[: 2 if test else 1]:
        for kind, values in (("images{}idx3", images), ("labels{}idx1", np.arange(10)[::-1])):
            content, name = idx(values), f"{part}-{kind.format(separator)}-ubyte"
            if zipped:  # in two members, which is as good a gzip file as one
                content, name = gzip.compress(content[:9]) + gzip.compress(content[9:]), name + ".gz"
            (folder / name).write_bytes(content)
    return images


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


@pytest.mark.parametrize(
    ("name", "described"),
    [
        ("digits", "digits: 1,797 images of 8×8, 10 classes"),
        ("iris", "iris: 150 examples of 4 features, 3 classes"),
        ("wine", "wine: 178 examples of 13 features, 3 classes"),
        ("breast_cancer", "breast_cancer: 569 examples of 30 features, 2 classes"),
        ("diabetes", "diabetes: 442 examples of 10 features, 1 real-valued target"),
    ],
)
def test_the_small_sets_need_no_download(name: str, described: str) -> None:
    data, test = load(name)
    assert data.describe() == described and test is None and data.notes == ()
    assert data.inputs.dtype == (torch.uint8 if name == "digits" else torch.float32)
    if data.task == "classify":
        assert data.targets.dtype == torch.int64 and data.targets.max() == len(data.classes or ()) - 1
    else:
        assert data.targets.dtype == torch.float32 and data.targets.mean().item() == pytest.approx(152.13, abs=0.01)
    if not data.is_image:
        assert len(data.feature_names or ()) == data.inputs.shape[1]


def test_iris_keeps_the_species_names() -> None:
    assert load("iris")[0].classes == ("setosa", "versicolor", "virginica")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("separator", ["-", "."])
def test_a_folder_of_idx_files(tmp_path: Path, zipped: bool, separator: str) -> None:
    images = write_mnist(tmp_path / "scans", zipped=zipped, separator=separator)
    train, test = load(str(tmp_path / "scans"))
    assert train.name == "scans" and train.classes == tuple("0123456789") and test is not None
    for part in (train, test):
        assert np.array_equal(part.inputs.numpy(), images) and part.targets.tolist() == list(range(10))[::-1]


def test_idx_files_without_a_test_part(tmp_path: Path) -> None:
    write_mnist(tmp_path, test=False)
    assert load(str(tmp_path))[1] is None


def test_data_dir_is_the_folder_or_the_one_above(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", first=1)
    write_mnist(tmp_path / "fashion-mnist", first=2)
    assert load("mnist", data_dir=tmp_path / "mnist")[0].inputs[0, 0, 0] == 1
    assert load("mnist", data_dir=str(tmp_path))[0].inputs[0, 0, 0] == 1
    fashion, test = load("fashion_mnist", data_dir=tmp_path)
    assert fashion.inputs[0, 0, 0] == 2 and test is not None
    assert (
        fashion.classes == test.classes
        and fashion.classes is not None
        and fashion.classes[:2] == ("T-shirt/top", "Trouser")
    )
    assert fashion.targets.tolist() == list(range(10))[::-1]


def test_a_path_that_exists_wins_over_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert load("digits")[0].inputs.shape == (10, 3, 4)
    assert load("iris")[0].inputs.shape == (150, 4)


def test_mnist_itself(shared_data: Path) -> None:
    train, test = load("mnist", data_dir=shared_data)
    assert test is not None and train.describe() == "mnist: 60,000 images of 28×28, 10 classes"
    assert train.targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4] and test.targets[:3].tolist() == [7, 2, 1]
    assert train.inputs.sum(dtype=torch.int64) == 1567298545 and len(test) == 10_000


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("x", "y"),
        ("X", "Y"),
        ("inputs", "targets"),
        ("images", "labels"),
        ("X_train", "y_train"),
        ("train_images", "train_labels"),
    ],
)
def test_an_npz_by_the_usual_names_and_what_was_taken_is_said(tmp_path: Path, x: str, y: str) -> None:
    values, labels = RNG.normal(size=(6, 3)), np.array([7, 9, 7, 9, 7, 7])
    np.savez(tmp_path / "mine.npz", **{x: values, y: labels, "extra": labels})
    data, test = load(str(tmp_path / "mine.npz"))
    assert (
        data.name == "mine"
        and data.classes == ("7", "9")
        and data.targets.tolist() == [0, 1, 0, 1, 0, 0]
        and test is None
    )
    assert np.allclose(data.inputs, values) and data.inputs.dtype == torch.float32
    assert data.notes == (f"took {x} as inputs and {y} as targets; not used: extra",)


def test_an_npz_with_a_test_part_of_its_own(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (9, 5, 5), dtype=np.uint8)
    np.savez(
        tmp_path / "m.npz",
        x_train=images[:6],
        y_train=np.array(["a", "b", "c"] * 2),
        x_test=images[6:],
        y_test=np.array(["c", "b", "c"]),
    )
    train, test = load(str(tmp_path / "m.npz"))
    assert test is not None and test.targets.tolist() == [2, 1, 2] and test.classes == train.classes == ("a", "b", "c")
    assert train.is_image and torch.equal(test.inputs, torch.from_numpy(images[6:]))
    assert train.notes == ("took x_train as inputs and y_train as targets, x_test and y_test as the test part",)


def test_floats_are_numbers_to_predict_and_whole_ones_are_pointed_out(tmp_path: Path) -> None:
    x = RNG.normal(size=(6, 3))
    np.savez(tmp_path / "a.npz", x=x, y=x[:, :2])
    data, _ = load(str(tmp_path / "a.npz"))
    assert data.task == "regress" and data.targets.shape == (6, 2) and data.classes is None
    np.savez(tmp_path / "b.npz", x=x, y=np.array([0.0, 1, 0, 1, 0, 1]))
    data, _ = load(str(tmp_path / "b.npz"))
    assert data.task == "regress" and "store whole numbers for classes" in data.notes[-1]


def test_one_hot_rows_are_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=RNG.normal(size=(6, 3)), y=np.eye(3)[[0, 2, 1, 1, 0, 2]])
    data, _ = load(str(tmp_path / "a.npz"))
    assert data.task == "classify" and data.targets.tolist() == [0, 2, 1, 1, 0, 2] and "one-hot" in data.notes[-1]


@pytest.mark.parametrize(
    ("shape", "dtype", "expected", "kept"),
    [
        ((4, 8, 8), np.uint8, (4, 8, 8), torch.uint8),
        ((4, 8, 8), np.int64, (4, 8, 8), torch.uint8),
        ((4, 8, 8), np.float64, (4, 8, 8), torch.float32),
        ((4, 8, 8, 3), np.uint8, (4, 8, 8, 3), torch.uint8),
        ((4, 3, 8, 8), np.uint16, (4, 8, 8, 3), torch.uint8),
        ((4, 1, 8, 8), np.float32, (4, 8, 8), torch.float32),
        ((4, 8, 8, 1), np.uint8, (4, 8, 8), torch.uint8),
        ((4, 5), np.int32, (4, 5), torch.float32),
        ((4, 5), ">f8", (4, 5), torch.float32),
        ((4, 5), np.float16, (4, 5), torch.float32),
        ((4, 5), np.uint64, (4, 5), torch.float32),
        ((4, 5), bool, (4, 5), torch.float32),
    ],
)
def test_arrays_of_every_number_type(
    tmp_path: Path, shape: tuple, dtype: str, expected: tuple, kept: torch.dtype
) -> None:
    array = RNG.integers(0, 2, shape).astype(dtype)
    np.savez(tmp_path / "a.npz", x=array, y=np.arange(4) % 2)
    inputs = load(str(tmp_path / "a.npz"))[0].inputs
    assert inputs.shape == expected and inputs.dtype == kept
    turned = np.moveaxis(array, 1, -1) if shape == (4, 3, 8, 8) else array
    assert np.array_equal(inputs.numpy(), turned.reshape(expected).astype(np.float64))


def test_images_by_class(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    save(tmp_path / "10" / "a.png", grey[0])
    save(tmp_path / "2" / "b.bmp", grey[1])
    save(tmp_path / "2" / "c.tiff", grey[2])
    (tmp_path / "2" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "2" / "Thumbs.db").write_bytes(b"\0")
    (tmp_path / "README.txt").write_text("hello")
    data, test = load(str(tmp_path))
    assert test is None and data.classes == ("2", "10") and data.targets.tolist() == [0, 0, 1]
    assert np.array_equal(data.inputs.numpy(), grey[[1, 2, 0]])
    assert [data.example_name(i) for i in range(3)] == ["2/b.bmp", "2/c.tiff", "10/a.png"]
    assert data.subset(torch.tensor([2])).example_name(0) == "10/a.png"
    assert len(data.notes) == 1 and "not used: 1 file beside" in data.notes[0]


def test_images_in_parts(tmp_path: Path) -> None:
    for part, label in (("train", "cat"), ("train", "dog"), ("test", "dog")):
        save(tmp_path / part / label / "1.png", RNG.integers(0, 256, (4, 4), dtype=np.uint8))
    train, test = load(str(tmp_path))
    assert train.name == tmp_path.name and test is not None and test.targets.tolist() == [1]
    assert test.classes == train.classes == ("cat", "dog")


def test_classes_may_be_called_train(tmp_path: Path) -> None:
    for label in ("bus", "car", "train"):
        save(tmp_path / label / "1.png", RNG.integers(0, 256, (4, 4), dtype=np.uint8))
    assert load(str(tmp_path))[0].classes == ("bus", "car", "train")


def test_every_kind_of_pixel(tmp_path: Path) -> None:
    ramp = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    save(tmp_path / "g" / "1-grey.png", ramp)
    save(tmp_path / "g" / "2-sixteen.png", ramp.astype(np.uint16) * 257)
    save(tmp_path / "g" / "3-bits.png", ramp, "1")
    inputs = load(str(tmp_path))[0].inputs
    assert (
        inputs.shape == (3, 4, 5) and torch.equal(inputs[0], inputs[1]) and set(inputs[2].unique().tolist()) <= {0, 255}
    )
    colour = np.stack([ramp, ramp[::-1], ramp * 0], axis=-1)
    save(tmp_path / "g" / "4-colour.png", colour)
    transparent = np.concatenate([colour, np.full((4, 5, 1), 255, np.uint8)], axis=-1)
    transparent[0, 0, 3] = 0
    save(tmp_path / "g" / "5-transparent.png", transparent)
    inputs = load(str(tmp_path))[0].inputs  # with one image in colour, all have three channels
    assert inputs.shape == (5, 4, 5, 3) and torch.equal(inputs[0, ..., 0], inputs[0, ..., 2])
    assert np.array_equal(inputs[3].numpy(), colour) and inputs[4, 0, 0].tolist() == [255, 255, 255]
    assert torch.equal(inputs[4, 1:], inputs[3, 1:])


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    image.save(tmp_path / "a" / "1.png", exif=exif)
    assert load(str(tmp_path))[0].inputs.shape == (1, 4, 2)


def test_inputs_alone_of_every_form(tmp_path: Path) -> None:
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "only.npz", anything=x)
    np.savez(tmp_path / "parts.npz", x_train=x[:1], x_test=x)
    for name in ("x.npy", "x.npz", "only.npz", "parts.npz"):
        assert np.array_equal(load_inputs(str(tmp_path / name)).inputs, x)
    pixels = RNG.integers(0, 256, (4, 5), dtype=np.uint8)
    save(tmp_path / "flat" / "2.png", pixels)
    save(tmp_path / "flat" / "1.png", pixels * 0)
    folder = load_inputs(str(tmp_path / "flat"))
    assert folder.files == ("1.png", "2.png") and np.array_equal(folder.inputs[1], pixels)
    one = load_inputs(str(tmp_path / "flat" / "2.png"))
    assert one.files == ("2.png",) and one.inputs.shape == (1, 4, 5)
    images = write_mnist(tmp_path / "idx")
    for source in (tmp_path / "idx", tmp_path / "idx" / "t10k-images-idx3-ubyte"):
        assert np.array_equal(load_inputs(str(source)).inputs, images)
    assert load_inputs("iris").inputs.shape == (150, 4)
