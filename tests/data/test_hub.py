"""MNIST by name, from a stand-in of the hub: what arrives, what is asked, what happens when the line breaks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_stand_in import Hub, parquet, serve
from huggingface_hub import constants

from feedfwd.data.readers import load
from feedfwd.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
LABELS = np.arange(60) % 10


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {}
    for repo, folder in (("ylecun/mnist", "mnist"), ("zalando-datasets/fashion_mnist", "fashion_mnist")):
        prefix = f"{repo}/resolve/main/{folder}"
        files[f"{prefix}/train-00000-of-00001.parquet"] = parquet(IMAGES[:50], LABELS[:50])
        files[f"{prefix}/test-00000-of-00001.parquet"] = parquet(IMAGES[50:], LABELS[50:])
    with serve(files) as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
        yield server


def test_both_parts_arrive_whole_and_the_cache_is_not_asked_for_twice(hub: Hub) -> None:
    train, test = load("mnist")
    assert test is not None and torch.equal(train.inputs, torch.from_numpy(IMAGES[:50]))
    assert torch.equal(test.inputs, torch.from_numpy(IMAGES[50:])) and test.targets.tolist() == list(range(10))
    assert train.classes == test.classes == tuple("0123456789") and train.targets.dtype == torch.int64
    asked = len(hub.seen)
    again, _ = load("mnist")
    assert len(hub.seen) == asked and again.fingerprint == train.fingerprint


def test_fashion_mnist_has_its_class_names(hub: Hub) -> None:
    train, _ = load("fashion_mnist")
    assert train.classes is not None and train.classes[9] == "Ankle boot" and len(train) == 50


def test_a_broken_download_goes_on_where_it_broke(hub: Hub) -> None:
    hub.drop = 1
    train, _ = load("mnist")
    assert torch.equal(train.inputs, torch.from_numpy(IMAGES[:50]))
    assert any(bytes_range for _, _, bytes_range in hub.seen)


def test_damaged_content_is_noticed_and_the_way_out_works(hub: Hub) -> None:
    hub.damage = True
    with pytest.raises(DataError, match=r"damaged.*delete it and run again") as caught:
        load("mnist")
    hub.damage = False
    Path(caught.value.message.removesuffix(" is damaged")).unlink()
    assert len(load("mnist")[0]) == 50


def test_a_hub_without_the_files_is_one_line(hub: Hub) -> None:
    hub.links.clear()
    with pytest.raises(DataError, match="--data-dir") as caught:
        load("mnist")
    assert "\n" not in str(caught.value)


def test_without_a_network_the_way_out_is_said_at_once(tmp_path: Path) -> None:
    """As a user would meet it: a fresh process, with the hub's own environment variables."""
    code = (
        "from feedfwd.data.readers import load\ntry: load('mnist')\nexcept Exception as e: print(type(e).__name__, e)"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=20)
    assert run.stdout.startswith("DataError mnist can't be fetched from the Hugging Face hub")
    assert "--data-dir FOLDER" in run.stdout and run.stdout.count("\n") == 1 and run.stderr == ""
