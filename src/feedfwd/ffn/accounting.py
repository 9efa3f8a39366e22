"""What a feed-forward layer costs, by formula: parameters, FLOPs, bytes kept for the backward, arithmetic intensity.

All counts are for the layer alone, its norm and its place in a model left out, and all but the parameters are for one
token. FLOPs are those of the matrix products, two for each multiplication with its addition.
"""

# N tokens, D model width, H hidden width; a dense layer has 2 matrices (D, H), a gated one 3

from typing import Literal

from feedfwd.config import FFNSpec
from feedfwd.errors import ConfigError
from feedfwd.ffn import activations
from feedfwd.ffn.kernels.formulas import SIGMA
from feedfwd.ffn.spec import is_gated, is_own

Work = Literal["forward", "training", "recompute", "checkpoint", "frozen"]
Path = Literal["plain", "kernels", "recompute"]
BYTES = {"bf16": 2, "fp32": 4}
# What autograd keeps of σ(z), in tensors of H a token: z itself, the output, or what the formula makes on its way.
OUTPUT = ("relu", "sigmoid", "tanh")
ON_ITS_WAY = {"relu2": 1, "xielu": 4}


def parameters(spec: FFNSpec, width: int, hidden: int) -> int:
    """How many there are.

    >>> parameters(FFNSpec(activation="swiglu", bias=False), 512, 1408)
    2162688
    """
    gated, sigma = _form(spec)
    matrices = (3 if gated else 2) * width * hidden
    biases = (2 if gated else 1) * hidden + width if spec.bias else 0
    return matrices + biases + (2 if sigma == "xielu" else 0)


def flops(spec: FFNSpec, width: int, hidden: int, work: Work = "training") -> int:
    """FLOPs of the products for one token.

    "forward"; "training", which adds twice as many for the gradients of inputs and weights; "recompute", where the
    backward takes the first product again; "checkpoint", where it takes the whole forward again; and "frozen", where
    the weights get no gradient, as under low-rank adapters (whose own products are 2/D of a rank's worth: left out).

    >>> gated = FFNSpec(kind="gated", activation="silu")
    >>> flops(gated, 1, 1), flops(gated, 1, 1, "recompute") / flops(gated, 1, 1), flops(gated, 1, 1, "frozen")
    (18, 1.2222222222222223, 12)
    """
    gated, _ = _form(spec)
    first = (4 if gated else 2) * width * hidden
    forward = first + 2 * width * hidden
    return {
        "forward": forward,
        "training": 3 * forward,
        "recompute": 3 * forward + first,
        "checkpoint": 4 * forward,
        "frozen": 2 * forward,
    }[work]


def kept(spec: FFNSpec, width: int, hidden: int, path: Path = "kernels", dtype: str = "bf16") -> int:
    """Bytes kept for the backward for one token, while training on a CPU.

    "kernels" keep x and the hidden layer before σ (x, gate and up where gated), "recompute" x alone, and neither a
    dropout's mask. "plain" is what autograd keeps of the formula: σ's input or output, what goes into the last
    product, and with dropout its mask in full precision (on a GPU that mask takes one byte an element).

    >>> swiglu = FFNSpec(activation="swiglu")
    >>> [kept(swiglu, 1, 0, path) + kept(swiglu, 0, 1, path) for path in ("plain", "kernels", "recompute")]
    [10, 6, 2]
    """
    gated, sigma = _form(spec)
    if path != "plain" and sigma not in SIGMA:
        raise ConfigError(f"no kernel is written for activation={sigma!r}", hint="path='plain' is what runs")
    if path == "recompute":
        tensors = 0
    elif path == "kernels":
        tensors = 2 if gated else 1
    elif (
        gated
    ):  # gate and up lie in one tensor, kept whole; then σ(gate), unless it is the gate itself, and the product
        tensors = 2 + ON_ITS_WAY.get(sigma, 0) + (sigma != "identity") + 1
    else:
        of_sigma = 0 if sigma == "identity" or sigma == "relu2" else 1
        tensors = of_sigma + ON_ITS_WAY.get(sigma, 0) + (sigma not in OUTPUT or spec.dropout > 0)
    if path == "plain" and spec.dropout > 0:
        tensors += 1
    return BYTES[dtype] * (width + tensors * hidden)


def intensity(spec: FFNSpec, width: int, hidden: int, tokens: int, dtype: str = "bf16") -> float:
    """FLOPs of the forward pass for each byte that has to be moved, the weights and every intermediate once each way.

    Below the ratio of a machine's FLOPs to its memory's bytes a second the memory sets the time, above it the
    arithmetic does: a few tokens are all memory, thousands all arithmetic.

    >>> swiglu = FFNSpec(activation="swiglu", bias=False)
    >>> [round(intensity(swiglu, 4096, 14336, tokens)) for tokens in (1, 64, 8192)]
    [1, 62, 1522]
    """
    gated, _ = _form(spec)
    product = 2 if gated else 1
    moved = parameters(spec, width, hidden) + tokens * (2 * width + (2 * product + 2) * hidden)
    return tokens * flops(spec, width, hidden, "forward") / (BYTES[dtype] * moved)


def equal_hidden(
    spec: FFNSpec,
    like: FFNSpec,
    width: int,
    hidden: int,
    by: Literal["parameters", "flops"] = "parameters",
    multiple: int = 1,
) -> int:
    """The hidden width at which `spec` costs as much as `like` does at `hidden`, to the nearest multiple.

    >>> dense, swiglu = FFNSpec(activation="gelu", bias=False), FFNSpec(activation="swiglu", bias=False)
    >>> equal_hidden(swiglu, dense, 4096, 16384), equal_hidden(swiglu, dense, 4096, 16384, multiple=256)
    (10923, 11008)
    """
    cost = parameters if by == "parameters" else flops
    constant = cost(spec, width, 0)
    exact = (cost(like, width, hidden) - constant) / (cost(spec, width, 1) - constant)
    return max(multiple, round(exact / multiple) * multiple)


def describe(spec: FFNSpec, width: int, hidden: int) -> str:
    """All of it as lines to read.

    >>> print(describe(FFNSpec(activation="gelu"), 512, 2048))
    dense, gelu: 512 -> 2,048 -> 512
    parameters                      2,099,712
    as many in gated                hidden 1,344 (a multiple of 64): 1.5% fewer
    FLOPs a token, forward          4.19 M
      with the backward             12.58 M
      recomputing                   14.68 M (+17%)
      with the weights frozen       8.39 M
    FLOPs a byte, forward in bf16   1.0 at 1 token, 50 at 64, 216 at 4,096
    bytes kept a token              bf16 9,216, fp32 18,432 by the plain formula
                                    bf16 5,120, fp32 10,240 by the kernels
                                    bf16 1,024, fp32 2,048 by the kernels, recomputing
    """
    gated, sigma = _form(spec)
    kind, other = ("gated", "dense") if gated else ("dense", "gated")
    other_spec, multiple = spec.model_copy(update={"kind": other, "activation": sigma}), 64 if hidden >= 512 else 8
    equal = equal_hidden(other_spec, spec, width, hidden, multiple=multiple)
    off = parameters(other_spec, width, equal) / parameters(spec, width, hidden) - 1
    difference = "the same to 0.1%" if abs(off) < 5e-4 else f"{abs(off):.1%} {'more' if off > 0 else 'fewer'}"
    intensities = [(intensity(spec, width, hidden, n), n) for n in (1, 64, 4096)]
    training, recompute = flops(spec, width, hidden), flops(spec, width, hidden, "recompute")
    rows = [
        ("parameters", f"{parameters(spec, width, hidden):,}"),
        (f"as many in {other}", f"hidden {equal:,} (a multiple of {multiple}): {difference}"),
        ("FLOPs a token, forward", _short(flops(spec, width, hidden, "forward"))),
        ("  with the backward", _short(training)),
        ("  recomputing", f"{_short(recompute)} (+{recompute / training - 1:.0%})"),
        ("  with the weights frozen", _short(flops(spec, width, hidden, "frozen"))),
        (
            "FLOPs a byte, forward in bf16",
            "{:.1f} at {:,} token, {:.0f} at {:,}, {:.0f} at {:,}".format(*(x for pair in intensities for x in pair)),
        ),
    ]
    paths: dict[str, Path] = {"the plain formula": "plain"}
    if sigma in SIGMA:
        paths |= {"the kernels": "kernels", "the kernels, recomputing": "recompute"}
    for path, by in zip(paths.values(), paths, strict=True):
        sizes = ", ".join(f"{dtype} {kept(spec, width, hidden, path, dtype):,}" for dtype in BYTES)
        rows.append(("bytes kept a token" if path == "plain" else "", f"{sizes} by {by}"))
    title = f"{kind}, {spec.activation}: {width:,} -> {hidden:,} -> {width:,}"
    return "\n".join([title, *(f"{name:<32}{text}" for name, text in rows)])


def _short(count: int) -> str:
    """Millions, or thousands where they are few."""
    return f"{count / 1e6:,.2f} M" if count >= 1e6 else f"{count / 1e3:,.1f} k"


def _form(spec: FFNSpec) -> tuple[bool, str]:
    """Whether there is a gate, and σ."""
    if is_own(spec.kind):
        raise ConfigError(f"ffn.kind={spec.kind!r} is a layer of your own", hint="only dense and gated have a formula")
    if spec.kind not in ("dense", "gated"):
        raise ConfigError(f"unknown ffn.kind={spec.kind!r}", hint="known: dense, gated")
    gated = is_gated(spec.kind, spec.activation)
    sigma = activations.gate(spec.activation) if gated else spec.activation
    activations.activation(sigma)  # raises for one that isn't known
    return gated, sigma
