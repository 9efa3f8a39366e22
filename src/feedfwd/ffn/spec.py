"""What to build: the one place where a spec becomes a layer."""

import importlib
import inspect

import torch
from torch import Generator, Tensor, nn

from feedfwd.config import FFNSpec
from feedfwd.errors import ConfigError, FeedfwdError, nearest
from feedfwd.ffn.activations import GATED
from feedfwd.ffn.dense import DenseFFN
from feedfwd.ffn.gated import GatedFFN

__all__ = ["FFNSpec", "build_ffn", "is_gated", "is_own"]


def is_own(kind: str) -> bool:
    """Whether a kind names a layer of the user's own, as package.module:Class."""
    return ":" in kind


def is_gated(kind: str, activation: str) -> bool:
    """Whether a layer has a gate: a gated activation such as swiglu says so too."""
    return kind == "gated" or (kind == "dense" and activation in GATED)


def check_options(spec: FFNSpec) -> None:
    """Options that nothing would read are an error, and so is mup for matrices that nobody here knows."""
    if spec.init == "mup" and is_own(spec.kind):
        what = f"ffn.init=mup does not know how the matrices of ffn.kind={spec.kind!r} grow with the width"
        raise ConfigError(what, hint="take ffn.kind=dense or gated with it, or another ffn.init")
    if spec.options and not is_own(spec.kind):
        raise ConfigError(f"ffn.options is not for ffn.kind={spec.kind!r}", hint="it is for a layer of your own")


def build_ffn(
    spec: FFNSpec,
    width: int,
    hidden: int,
    *,
    norm: str | None = None,
    depth: int = 1,
    generator: Generator | None = None,
) -> nn.Module:
    """The feed-forward layer that `spec` describes, width → hidden → width.

    `norm`, `depth` and `generator` go to the built-in kinds, as in DenseFFN. A layer of the user's own is called with
    width, hidden, those of activation, bias and dropout that it takes, and `spec.options`; it normalises and
    initialises itself. What it must promise, `feedfwd.testing.check_ffn` checks.

    >>> build_ffn(FFNSpec(activation="swiglu"), 8, 32)
    GatedFFN(
      gate_up=(64, 8), bias=True, init=he_normal + lecun_normal
      (activation): SiLU()
      (norm): Identity()
      (dropout): Dropout(p=0.0, inplace=False)
      (down): Linear(in_features=32, out_features=8, bias=True, init=lecun_normal)
    )
    """
    check_options(spec)
    common = (width, hidden, spec.activation, spec.bias, spec.dropout, spec.init, norm)
    match spec.kind:
        case "dense" | "gated" if is_gated(spec.kind, spec.activation):
            return GatedFFN(*common, depth=depth, generator=generator)
        case "dense":
            return DenseFFN(*common, depth=depth, generator=generator)
        case own if is_own(own):
            return _own(spec, width, hidden)
    hint = nearest(spec.kind, ["dense", "gated"]) + ", or package.module:Class for a layer of your own"
    raise ConfigError(f"unknown ffn.kind={spec.kind!r}", hint=hint)


def _own(spec: FFNSpec, width: int, hidden: int) -> nn.Module:
    """Import and call a layer of the user's own, and glance at what it does to one token."""
    layer_class = _named(spec.kind)
    signature = inspect.signature(layer_class)
    offered = {"activation": spec.activation, "bias": spec.bias, "dropout": spec.dropout}
    taken = {name: value for name, value in offered.items() if name in signature.parameters} | spec.options
    if spec.dropout and "dropout" not in taken:
        raise ConfigError(f"{spec.kind} takes no dropout", hint="give it a `dropout` parameter, or set ffn.dropout=0")
    try:
        signature.bind(width, hidden, **taken)
    except TypeError as error:
        hint = f"it is called with width, hidden{''.join(f', {name}=' for name in taken)} and takes {signature}"
        raise ConfigError(
            f"ffn.kind={spec.kind!r}: the constructor refuses its arguments: {error}", hint=hint
        ) from None
    try:
        layer = layer_class(width, hidden, **taken).eval()
        with torch.no_grad():
            y = layer(torch.zeros(1, width))
    except FeedfwdError:
        raise
    except Exception as error:  # foreign code; its own traceback stays attached
        what = f"with width={width}, hidden={hidden} and one token it raised {type(error).__name__}: {error}"
        raise ConfigError(f"ffn.kind={spec.kind!r}: {what}", hint="feedfwd.testing.check_ffn shows more") from error
    if not isinstance(y, Tensor) or y.shape != (1, width):
        seen = f"the shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        hint = "a layer is Tensor → Tensor of the same shape; feedfwd.testing.check_ffn tells all it must promise"
        raise ConfigError(f"ffn.kind={spec.kind!r}: an input of shape (1, {width}) gave {seen}", hint=hint)
    return layer.train()


def _named(path: str) -> type[nn.Module]:
    """The class that package.module:Class names."""
    module_name, _, name = path.partition(":")
    where = f"ffn.kind={path!r}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = "install it, or set PYTHONPATH to the folder that holds it"
        raise ConfigError(f"{where}: there is no module {error.name!r}", hint=hint) from None
    except Exception as error:  # a module may do anything when it is imported
        hint = "python -c 'import …' shows where" if module_name else "write package.module:Class"
        raise ConfigError(f"{where}: importing {module_name!r} failed: {error}", hint=hint) from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):  # anything else is not called: a config may be foreign
        return found
    classes = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
    hint = nearest(name, classes) if classes else f"{module_name} defines no torch.nn.Module"
    what = f"{name!r} is no torch.nn.Module class" if found is not None else f"module {module_name!r} has no {name!r}"
    raise ConfigError(f"{where}: {what}", hint=hint)
