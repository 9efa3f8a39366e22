"""A run's low-rank adapters: kept beside the merged weights, started from, and told of.

Training merges them into the weights, so that a run needs no base. `adapter.safetensors` keeps what was trained apart,
a few megabytes: for peft (`feedfwd export --to peft`), and to go on from with `adapt.start`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from feedfwd.checkpoint import Run, write_whole
from feedfwd.config_finetune import AdaptConfig
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.ffn.lora import adapter_state, add_adapters, load_adapter_state, lora_layers
from feedfwd.ffn.lora_linear import Adapter
from feedfwd.interop.families import FAMILIES
from feedfwd.interop.peft import CONFIG, load_peft
from feedfwd.models import adapt
from feedfwd.models.transformer import Transformer
from feedfwd.recipes.pretrained import Pretrained

ADAPTER = "adapter.safetensors"
NAME = "default"
LOW_RANK = ("lora", "dora")
PROBED = 64  # values of each tensor that tell one base from another


@dataclass(frozen=True)
class Kept:
    """What a run keeps: adapters by the paths of their maps, their tensors, and whose weights they were made for."""

    adapters: dict[str, Adapter]
    tensors: dict[str, Tensor]
    base: str  # its place
    fingerprint: str  # of its weights

    @classmethod
    def of(cls, path: Path) -> "Kept | None":
        """Those of the run at `path`; None where it has none."""
        file = path / ADAPTER
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as opened:
                said = opened.metadata()
                tensors = {key: opened.get_tensor(key) for key in list(opened.keys())}
            adapters = {key: Adapter(**value) for key, value in json.loads(said["adapters"]).items()}
            return cls(adapters, tensors, said["base"], said["fingerprint"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{file} is damaged: {error}", hint="restore it from a copy, or train again") from None

    def give(self, body: Transformer) -> None:
        """Adapt a model with them."""
        add_adapters(body, NAME, self.adapters)
        load_adapter_state(body, self.tensors, NAME)

    @property
    def size(self) -> int:
        """Bytes of their tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def keep(run: Run, model: nn.Module, base: str) -> None:
    """Write what was trained of the maps, before it is merged into them."""
    body = adapt.transformer_of(model)
    made = {path: asdict(layer.adapters[NAME]) for path, layer in lora_layers(body)}
    said = {"format": "pt", "base": base, "fingerprint": fingerprint(body), "adapters": json.dumps(made)}
    tensors = {key: tensor.cpu().contiguous() for key, tensor in adapter_state(body, NAME).items()}
    write_whole(run.path / ADAPTER, lambda part: save_file(tensors, part, metadata=said))


def fingerprint(body: Transformer) -> str:
    """Of a model's own weights, whether they are adapted or not, and whatever stands above them."""
    digests = []
    for name, tensor in body.state_dict().items():
        if name.startswith(("blocks.", "embedding.")) and ".lora_" not in name:
            values = tensor.flatten()[:: max(1, tensor.numel() // PROBED)]
            digests.append(hashlib.blake2b(values.float().cpu().numpy().tobytes(), digest_size=16).digest())
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()


def adapted(
    model: nn.Module, method: str, settings: AdaptConfig, pretrained: Pretrained, *, frozen_embeddings: bool = False
) -> adapt.Prepared:
    """Say which weights of a model are trained, as `models.adapt.prepare` does, or go on from adapters there are.

    Raises DataError for a place that holds none, ConfigError for those of another model or method.
    """
    how: dict[str, Any] = settings.model_dump(exclude={"start"}) if method in LOW_RANK else {}
    if settings.start is None:
        return adapt.prepare(model, method, frozen_embeddings=frozen_embeddings, **how)
    body = adapt.transformer_of(model)
    place = Path(settings.start).expanduser()
    if (place / CONFIG).is_file():
        own = (family for family in FAMILIES.values() if not family.unable(body))  # as which a run of ours is exported
        load_peft(body, place, NAME, family=FAMILIES.get(pretrained.family) or next(own, None))
    else:
        _of_run(settings.start, place, body, pretrained)
    found = {layer.adapters[NAME].method for _, layer in lora_layers(body)}
    if (method == "dora") != (found == {"dora"}):
        what = f"{settings.start} holds adapters of {' and '.join(sorted(found))}, and --method says {method}"
        raise ConfigError(what, hint=f"take --method {'dora' if found == {'dora'} else 'lora'}")
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    paths = tuple(path for path, _ in lora_layers(body))
    return adapt.Prepared(method, trained, sum(p.numel() for p in parameters), {settings.start: paths})


def _of_run(said: str, place: Path, body: Transformer, pretrained: Pretrained) -> None:
    kept = Kept.of(place)
    if kept is None:
        what = f"adapt.start={said} holds no adapters"
        raise DataError(what, hint=f"give a run of --method lora or dora, or a folder with peft's {CONFIG}")
    if kept.fingerprint != fingerprint(body):
        what = f"the adapters of {said} were made for {kept.base}, and {pretrained.name} has other weights"
        raise ConfigError(what, hint=f"take --from {kept.base}")
    with torch.no_grad():
        kept.give(body)
