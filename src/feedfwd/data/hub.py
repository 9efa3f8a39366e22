"""Image data sets and models from the Hugging Face hub, by name, into its cache.

A file in the cache is used without asking the hub again. A dropped connection is taken up where it broke; what arrives
is checked against the hub's SHA-256.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from feedfwd.data.dataset import Dataset
from feedfwd.data.images import read_parquet
from feedfwd.errors import DataError


def fetch_images(name: str, repo: str, folder: str, classes: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    """The train and test parts of a data set of the hub that is kept as one parquet file each."""
    train, test = (
        read_parquet(_fetch(name, repo, f"{folder}/{part}-00000-of-00001.parquet"), name, classes)
        for part in ("train", "test")
    )
    return train, test


def _fetch(name: str, repo: str, file: str) -> Path:
    """Path of a file of the hub in the local cache, fetched if it isn't there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file, repo_type="dataset")
    if not isinstance(cached, str):
        try:
            # hf_hub_download repeats a failed first request for half a minute; this one fails at once.
            get_hf_file_metadata(hf_hub_url(repo, file, repo_type="dataset"), timeout=10)
            cached = hf_hub_download(repo, file, repo_type="dataset")
        except Exception as error:  # the hub's client raises what its HTTP library does, and that library has changed
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"{name} can't be fetched from the Hugging Face hub ({problem})",
                hint="with its IDX files in a folder, use --data-dir FOLDER; no network is needed then",
            ) from None
    blob = Path(cached).resolve()
    # The cache names a large file after its SHA-256; where links aren't possible it can't, and the size must do.
    if len(blob.name) == 64 and hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
        raise DataError(f"{blob} is damaged", hint="delete it and run again: it will be fetched anew")
    return Path(cached)


# What a model is read from; the same weights in other forms stay there.
MODEL_FILES = ("*.json", "*.jinja", "model*.safetensors", "1_Pooling/*")


def fetch_model(name: str) -> Path:
    """The folder of a model of the hub in its cache, fetched where it isn't there; `name` is owner/name.

    Raises DataError for a name that the hub hasn't, and where it can't be reached and the cache hasn't got it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        # snapshot_download repeats a failed first request; this one fails at once
        found = HfApi().model_info(name, timeout=10)
        _refuse_pickles(name, [file.rfilename for file in found.siblings or ()])
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except DataError:
        raise
    except RepositoryNotFoundError:
        hint = "check owner/name; a closed model needs HF_TOKEN"
        raise DataError(f"the Hugging Face hub has no model {name!r} to show you", hint=hint) from None
    except Exception as error:  # the hub's client raises what its HTTP library does, and that library has changed
        try:
            return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES), local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"there is no folder {name}, and it can't be fetched from the Hugging Face hub ({problem})",
                hint="check the name, or give the path of a model's folder; no network is needed then",
            ) from None


def _refuse_pickles(name: str, files: Sequence[str]) -> None:
    """Say what to do of a model whose weights are a pickle and nothing else."""
    if any(file.endswith(".safetensors") for file in files):
        return
    if any(file.startswith("pytorch_model") and file.endswith(".bin") for file in files):
        call = "from huggingface_hub import snapshot_download as get; from feedfwd.interop.weights import convert; "
        call += f"print(convert(get({name!r}, allow_patterns=['*.json', '*.bin'])).parent)"
        what = f"{name} has its weights as a pickle alone, which could run code"
        raise DataError(what, hint=f'convert it, which refuses code, and give the folder it prints: python -c "{call}"')
