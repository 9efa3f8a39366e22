"""The public conformance test of a feed-forward layer: what passes works wherever a built-in kind does.

def test_my_layer():
    feedfwd.testing.check_ffn(MyFFN)
"""

import inspect
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from feedfwd.errors import ConformanceError

WIDTH, HIDDEN = 16, 32

Make = Callable[[], nn.Module]


def check_ffn(make: Callable[..., nn.Module]) -> None:
    """Check every promise of a feed-forward layer; ConformanceError quotes one that is broken, and what to write.

    `make(width, hidden)` builds a new layer: a class, or a function that returns one. Where its signature takes
    `activation`, `bias` or `dropout`, it is called with them too. torch's random state is left as it was found.

    >>> from feedfwd.ffn import GatedFFN
    >>> check_ffn(GatedFFN)
    """
    name = getattr(make, "__name__", repr(make))
    with torch.random.fork_rng(devices=[]):
        for options in _variants(make):
            call = f"{name}({WIDTH}, {HIDDEN}{''.join(f', {key}={value!r}' for key, value in options.items())})"
            for promise in PROMISES if "dropout" not in options else (*PROMISES, DROPS_OUT):
                torch.manual_seed(0)
                try:
                    seen = promise.check(partial(make, WIDTH, HIDDEN, **options))
                    cause = None
                except Exception as error:  # foreign code: whatever it raises is what was seen
                    seen, cause = f"{type(error).__name__}: {error}", error
                if seen:
                    what = f"{call} breaks a promise. Promised: {promise.says}. Seen: {seen}"
                    raise ConformanceError(what, hint=promise.instead) from cause


def _variants(make: Callable[..., nn.Module]) -> Iterator[dict[str, Any]]:
    """The keyword arguments to try: none, and each that a configuration can set and the signature names."""
    yield {}
    taken = inspect.signature(make).parameters
    yield from (
        {key: value} for key, value in {"activation": "gelu", "bias": False, "dropout": 0.5}.items() if key in taken
    )


@dataclass(frozen=True)
class Promise:
    says: str
    instead: str
    check: Callable[[Make], str]  # what was seen where the promise is broken, else nothing


def _maps_tensors(make: Make) -> str:
    layer = make()
    if not isinstance(layer, nn.Module):
        return f"a {type(layer).__name__} was built"
    x = torch.randn(6, WIDTH)
    return _unlike(layer(x), x)


def _leaves_input(make: Make) -> str:
    x = torch.randn(6, WIDTH)
    before = x.clone()
    _live(make)(x)
    return "" if torch.equal(x, before) else f"the input changed in {int((x != before).sum())} places"


def _takes_any_leading_dimensions(make: Make) -> str:
    layer = _live(make)
    for mode in (True, False):
        layer.train(mode)
        for leading in [(1,), (0,), (), (2, 3), (2, 0, 3), (2, 1, 3, 2)]:
            x = torch.randn(*leading, WIDTH)
            try:
                seen = _unlike(layer(x), x)
            except Exception as error:
                raise RuntimeError(f"with an input of the shape {tuple(x.shape)}: {error}") from error
            if seen:
                return seen
    layer(torch.randn(3, 2, WIDTH).transpose(0, 1))  # strides as an attention layer may leave them
    return ""


def _treats_each_token_alone(make: Make) -> str:
    """Change one token and see whether others move; in training each call has the same seed and a fresh copy."""
    layer = _live(make)
    x = torch.randn(2, 5, WIDTH)
    changed = x.clone()
    changed[0, 0] += 3
    for mode in (False, True):
        outputs = []
        for inputs in (x, changed):
            torch.manual_seed(1)
            outputs.append(deepcopy(layer).train(mode)(inputs).flatten(0, 1)[1:])
        if seen := _apart(*outputs):
            return (
                f"another token's output changed by {seen} when one was changed ({'training' if mode else 'eval'} mode)"
            )
    layer.eval()
    seen = _apart(layer(x)[1, 3], layer(x[1, 3]))
    return f"a token's output differs by {seen} when it comes alone" if seen else ""


def _is_deterministic_in_eval(make: Make) -> str:
    layer = _live(make).eval()
    x = torch.randn(6, WIDTH)
    before = deepcopy(layer.state_dict())
    first, second = layer(x), layer(x)
    if not torch.equal(first, second):
        return f"two calls differ by {(first - second).abs().max().item():.2g}"
    moved = [name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])]
    return f"a call changed {', '.join(moved)}" if moved else ""


def _gives_gradients(make: Make) -> str:
    layer = _live(make)
    x = torch.randn(64, WIDTH, requires_grad=True)
    y = layer(x)
    (y * torch.randn_like(y)).sum().backward()
    leaves = {"the input": x} | {name: p for name, p in layer.named_parameters() if p.requires_grad}
    without = [name for name, leaf in leaves.items() if leaf.grad is None]
    if without:
        return f"no gradient reached {', '.join(without)}"
    wild = [name for name, leaf in leaves.items() if leaf.grad is not None and not leaf.grad.isfinite().all()]
    return f"the gradient of {', '.join(wild)} is not finite" if wild else ""


def _registers_its_state(make: Make) -> str:
    for name, module in _live(make).named_modules():
        for attribute, value in vars(module).items():
            inside = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            if attribute not in vars(nn.Module()) and any(isinstance(item, Tensor | nn.Module) for item in inside):
                return f"{f'{name}.{attribute}'.strip('.')} is a plain attribute of {type(module).__name__}"
    return ""


def _survives_a_state_dict(make: Make) -> str:
    layer, other = _live(make).eval(), make().eval()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(6, WIDTH)
    seen = _apart(layer(x), other(x))
    return f"a layer that loaded another's state_dict differs from it by {seen}" if seen else ""


def _can_be_copied(make: Make) -> str:
    layer = _live(make).eval()
    x = torch.randn(6, WIDTH)
    y = layer(x)
    copy = deepcopy(layer)
    if seen := _apart(y, copy(x)):
        return f"the copy differs by {seen}"
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1)
    return "changing the copy changed the original" if _apart(y, layer(x)) else ""


def _moves_to_other_types(make: Make) -> str:
    layer = _live(make)
    x = torch.randn(6, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    x64 = x.double()
    if seen := _unlike(layer.double()(x64), x64):
        return f"after .double(): {seen}"
    if torch.accelerator.is_available():
        there = x.to(torch.accelerator.current_accelerator())
        return _unlike(layer.float().to(there.device)(there), there)
    return ""


def _drops_out(make: Make) -> str:
    layer = _live(make).train()
    x = torch.randn(6, WIDTH)
    return "two calls in training mode gave the same" if torch.equal(layer(x), layer(x)) else ""


def _live(make: Make) -> nn.Module:
    """A layer some way into its training: at the start a layer may give zeros, which hide everything."""
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def _unlike(y: object, x: Tensor) -> str:
    """How an output fails to be a tensor like its input; nothing where it is one."""
    if not isinstance(y, Tensor):
        return f"the output is a {type(y).__name__}"
    if y.shape != x.shape:
        return f"an input of the shape {tuple(x.shape)} gave {tuple(y.shape)}"
    if y.dtype != x.dtype or y.device != x.device:
        return f"an input of {x.dtype} on {x.device} gave {y.dtype} on {y.device}"
    return "" if bool(y.isfinite().all()) else "the output is not finite"


def _apart(a: Tensor, b: Tensor) -> str:
    """How far two outputs are apart; nothing where rounding explains it."""
    return "" if torch.allclose(a, b, rtol=1e-4, atol=1e-5) else f"{(a - b).abs().max().item():.2g}"


PROMISES = (
    Promise(
        "a torch.nn.Module that maps one tensor to one tensor of the same shape and type",
        "return the output alone; a balancing loss or statistics stay in a buffer of the layer",
        _maps_tensors,
    ),
    Promise(
        "the input is left as it is",
        "write x = x + y instead of x += y, and relu(x) instead of relu_(x) on the input",
        _leaves_input,
    ),
    Promise(
        "in eval mode the same input gives the same output, bit for bit, and changes nothing in the layer",
        "use nn.Dropout, or F.dropout(x, p, training=self.training); draw and count only `if self.training`",
        _is_deterministic_in_eval,
    ),
    Promise(
        "copy.deepcopy gives an independent layer",
        "keep no tensor that was computed with gradients, no lock, file or closure over the layer in it",
        _can_be_copied,
    ),
    Promise(
        "each token is treated by itself, in training too",
        "act on the last axis only: nn.LayerNorm or nn.RMSNorm instead of batch statistics, dim=-1 in softmax and mean",
        _treats_each_token_alone,
    ),
    Promise(
        "any leading dimensions, also one token and none",
        "act on the last axis, x.reshape(-1, x.shape[-1]) where rows are needed (not view), and allow for 0 rows",
        _takes_any_leading_dimensions,
    ),
    Promise(
        "every tensor of the layer is a parameter or a buffer, and every layer inside it a submodule",
        "use nn.Parameter, self.register_buffer, nn.ModuleList or nn.ModuleDict",
        _registers_its_state,
    ),
    Promise(
        "every parameter that requires a gradient gets a finite one, and so does the input",
        "remove parameters that are not used, .detach(), .data and no_grad() on the way; fix with requires_grad=False",
        _gives_gradients,
    ),
    Promise(
        "state_dict holds all that the output depends on",
        "make what is drawn at construction a parameter or a persistent buffer",
        _survives_a_state_dict,
    ),
    Promise(
        "the layer follows .to(dtype), .to(device) and autocast",
        "create tensors as x.new_zeros(…) or with dtype=x.dtype, device=x.device; cast before adding",
        _moves_to_other_types,
    ),
)
DROPS_OUT = Promise(
    "a layer that takes dropout drops something while training",
    "pass `dropout` on to nn.Dropout, or leave it out of the signature",
    _drops_out,
)
