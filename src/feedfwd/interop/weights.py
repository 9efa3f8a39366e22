"""A folder's weights as tensors: safetensors, whole or in shards. Pickles, which could run code, are never read so."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedfwd.errors import DataError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_json(file: Path) -> dict[str, Any]:
    """An object of JSON. Raises DataError for a file that is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file.parent} has no {file.name}", hint="give the folder of a model, whole") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is damaged: {error}", hint="fetch or copy it again") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no settings but a {type(found).__name__}", hint="fetch or copy it again")
    return found


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by their names there, as they are stored."""
    if (folder / WHOLE).is_file():
        return _load(folder / WHOLE)
    if (folder / INDEX).is_file():
        return _shards(folder, _weight_map(folder / INDEX), _load)
    if any((folder / name).exists() for name in PICKLES):
        call = f"from feedfwd.interop.weights import convert; convert({str(folder)!r})"
        hint = f'convert it, which refuses code: python -c "{call}"'
        raise DataError(f"{folder}: the weights are a pickle, which could run code", hint=hint)
    hint = f"a model's folder holds config.json and {WHOLE}, or shards with {INDEX}"
    raise DataError(f"{folder} has no weights", hint=hint)


def convert(folder: Path | str) -> Path:
    """Write pytorch_model.bin as model.safetensors beside it, and return that.

    torch reads it with weights_only=True: tensors and plain containers alone. Raises DataError for a file that asks
    for anything else.
    """
    folder = Path(folder)
    whole, index = (folder / name for name in PICKLES)
    if whole.is_file():
        tensors = _unpickle(whole)
    elif index.is_file():
        tensors = _shards(folder, _weight_map(index), _unpickle)
    else:
        raise DataError(f"{folder} has no {PICKLES[0]}", hint="give the folder of a model")
    out = folder / WHOLE
    part = out.with_name(f".{WHOLE}.part")
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})
    return part.replace(out)


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is damaged: {error}", hint="fetch or copy it again") from None


def _unpickle(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's text is a page
        hint = "only tensors are read; get the model as safetensors"
        raise DataError(f"{file} holds more than tensors, which could run code, and is refused", hint=hint) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{file} is damaged: {str(error).splitlines()[0]}", hint="fetch or copy it again") from None
    tensors = found if isinstance(found, dict) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise DataError(f"{file} is no table of tensors", hint="it needs a model's state_dict")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Which file holds each tensor."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise DataError(f"{index} names no tensors", hint="fetch or copy it again")
    if outside := [name for name in found.values() if Path(str(name)).name != name]:
        raise DataError(f"{index} points outside its folder, to {outside[0]!r}", hint="don't use this model")
    return found


def _shards(folder: Path, places: dict[str, str], load: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            raise DataError(f"{folder} lacks the shard {name}", hint="fetch or copy the model again, whole")
        tensors |= load(folder / name)
    if missing := sorted(set(places) - set(tensors)):
        raise DataError(f"{folder}: {places[missing[0]]} lacks {missing[0]!r}", hint="fetch or copy it again")
    return tensors
