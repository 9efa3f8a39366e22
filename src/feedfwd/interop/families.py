"""The families of Hugging Face's models that are rows of settings here: what each can say, and what it calls a tensor.

A row reads a config.json into the Transformer's settings, writes one of a Transformer, and pairs the tensors' names.
The rows are in `decoders` and `encoders`, one a family.
"""

from feedfwd.errors import ConfigError, nearest
from feedfwd.interop.decoders import DECODERS
from feedfwd.interop.encoders import ENCODERS
from feedfwd.interop.family import Family
from feedfwd.models.transformer import Transformer

FAMILIES = {family.name: family for family in (*DECODERS, *ENCODERS)}


def family_named(name: object) -> Family:
    """The row of config.json's model_type. Raises ConfigError with the nearest one."""
    if name is None:
        raise ConfigError("config.json names no model_type", hint="give the folder of a model, whole")
    if name not in FAMILIES:
        raise ConfigError(f"family {name!r} is not read here", hint=nearest(str(name), FAMILIES))
    return FAMILIES[str(name)]


def family_of(model: Transformer) -> Family:
    """The first family that can express this model. Raises ConfigError naming what none of them has."""
    objections = {family.name: family.unable(model) for family in FAMILIES.values()}
    for name, found in objections.items():
        if not found:
            return FAMILIES[name]
    name, fewest = min(objections.items(), key=lambda item: len(item[1]))
    listed = ", ".join(f"{setting}={value!r}" for setting, value in fewest)
    hint = f"keep the run directory, or train without it; known families: {', '.join(objections)}"
    raise ConfigError(f"this model can't be written for Hugging Face: {listed} (nearest family: {name})", hint=hint)
