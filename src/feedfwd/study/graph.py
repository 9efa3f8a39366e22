"""`feedfwd graph`: a network's computation, forward and backward, as SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feedfwd.checkpoint import write_text
from feedfwd.config import FitConfig, parse
from feedfwd.errors import ConfigError
from feedfwd.ffn.gated import GatedLinear
from feedfwd.models.bag import Bag
from feedfwd.models.block import Attention
from feedfwd.recipes.console import Listener
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.prepare import prepare
from feedfwd.recipes.verbs import verb_of
from feedfwd.report.words import count
from feedfwd.study.drawing import byte_count, draw
from feedfwd.study.trace import INPUT, Step, kept, trace

EXAMPLES, TOKENS = 8, 64  # of the pass that is measured
WORDS = {
    "add": "+", "sub": "−", "mul": "×", "div": "÷", "cat": "join", "bmm": "product", "matmul": "product",
    "addcmul": "scale", "fused_rms_norm": "rms norm", "index_select": "rows",
}  # fmt: skip


@dataclass
class Box:
    """Steps that a reader takes for one: a layer, or what a module does between its layers."""

    title: str
    path: str  # of the module
    group: str  # the block that it belongs to, or ""
    kind: str  # the block's class
    shape: tuple[int, ...]  # of what comes out, without the batch
    reads: set[int] = field(default_factory=set)  # boxes, or INPUT
    parameters: int = 0
    forward: float = 0.0  # FLOPs of one example or token
    backward: float = 0.0
    kept: float = 0.0  # bytes of one example or token
    times: int = 1  # blocks like this one in a row, of which this is the last


@dataclass
class Graph:
    boxes: list[Box]
    unit: str  # "example" or "token"
    parameters: int
    forward: float
    backward: float
    kept: float
    really: float  # kept where kernels run that keep less


def graph_of(model: nn.Module, x: Tensor, per: int, unit: str = "example") -> Graph:
    """The computation of `model` on `x`, which holds `per` examples or tokens."""
    found = trace(model, x)
    boxes = folded(boxed(found.steps, dict(model.named_modules()), per))
    totals = {name: found.total(name) / per for name in ("forward", "backward", "kept")}
    return Graph(boxes, unit, found.total("parameters"), **totals, really=kept(model, x) / per)


def boxed(steps: Sequence[Step], modules: dict[str, nn.Module], per: int) -> list[Box]:
    boxes: list[Box] = []
    place = {INPUT: INPUT}  # by step: its box
    start = 0
    for _, run in groupby(enumerate(steps), key=lambda pair: _same(pair, steps, modules)):
        together = [step for _, step in run]
        numbers = range(start, start + len(together))
        start += len(together)
        first, last = together[0], together[-1]
        path = _owner(first, modules)
        group, kind = _block(path, modules)
        reads = {place[n] for step in together for n in step.reads if n not in numbers}
        box = Box(_title(together, modules), path, group, kind, last.shape[1:], reads)
        for name in ("forward", "backward", "kept"):
            setattr(box, name, sum(getattr(step, name) for step in together) / per)
        box.parameters = sum(step.parameters for step in together)
        place |= dict.fromkeys(numbers, len(boxes))
        boxes.append(box)
    return boxes


def _same(pair: tuple[int, Step], steps: Sequence[Step], modules: dict[str, nn.Module]) -> tuple[Any, ...]:
    """Steps with an equal answer that follow each other make one box: a layer's, and those without products."""
    number, step = pair
    owner = _owner(step, modules)
    if owner == step.path and not any(True for _ in step.module.children()):
        return owner, step.call
    call = step.call if owner == step.path else 0
    return (owner, 0, "product", number) if step.forward else (owner, call and 0, "between")


def _owner(step: Step, modules: dict[str, nn.Module]) -> str:
    """The module that a step is told of: a gate's σ belongs to its layer."""
    parent = step.path.rpartition(".")[0]
    return parent if isinstance(modules.get(parent), GatedLinear) and step.path.endswith(".activation") else step.path


def _block(path: str, modules: dict[str, nn.Module]) -> tuple[str, str]:
    """The repeated block around a module: its path up to the first number, and its class."""
    parts = path.split(".")
    for n, part in enumerate(parts):
        if part.isdigit():
            name = ".".join(parts[: n + 1])
            return name, type(modules[name]).__name__
    return "", ""


def _title(steps: Sequence[Step], modules: dict[str, nn.Module]) -> str:
    first = steps[0]
    owner = modules[_owner(first, modules)]
    if isinstance(owner, GatedLinear) and first.path != _owner(first, modules):
        return f"{_spaced(type(first.module).__name__)}(gate) ⊙ up"
    if first.op == "linear" and isinstance(owner, GatedLinear):
        return "gate and up, one product"
    if isinstance(owner, Attention) and first.op == "linear":
        return "queries, keys, values"
    if isinstance(owner, Attention) and not any(step.forward for step in steps):
        return "turn by position"
    if any(step.op == "embedding_bag" for step in steps):
        return "weighted sum of embeddings"
    if not any(True for _ in owner.children()) and type(owner).__module__.startswith(("torch.nn", "feedfwd")):
        return _spaced(type(owner).__name__)
    return " ".join(dict.fromkeys(WORDS.get(step.op, step.op.replace("_", " ")) for step in steps))


def _spaced(name: str) -> str:
    """
    >>> _spaced("LayerNorm"), _spaced("ReLU"), _spaced("SiLU"), _spaced("MemberHead"), _spaced("RMSNorm")
    ('layer norm', 'relu', 'silu', 'member head', 'rms norm')
    """
    known = {"ReLU": "relu", "SiLU": "silu", "GELU": "gelu", "RMSNorm": "rms norm"}
    if name in known:
        return known[name]
    return "".join(" " + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


def folded(boxes: list[Box]) -> list[Box]:
    """Blocks that repeat each other in a row are shown once, the last of them: the first may have more to keep."""
    groups = [(name, list(of)) for name, of in groupby(enumerate(boxes), key=lambda pair: pair[1].group)]
    kept_groups: list[list[int]] = []
    times: list[int] = []
    for name, pairs in groups:
        numbers = [n for n, _ in pairs]
        if name and kept_groups and _alike([boxes[n] for n in kept_groups[-1]], [boxes[n] for n in numbers]):
            kept_groups[-1], times[-1] = numbers, times[-1] + 1
        else:
            kept_groups.append(numbers)
            times.append(1)
    order = [n for numbers in kept_groups for n in numbers]
    out = []
    for numbers, many in zip(kept_groups, times, strict=True):
        for n in numbers:
            # what a block that isn't shown gave comes from the box shown before this block
            before = max((m for m in order if m < numbers[0]), default=INPUT)
            shown = {m if m in order or m == INPUT else before for m in boxes[n].reads}
            boxes[n].reads = {INPUT if m == INPUT else order.index(m) for m in shown}
            boxes[n].times = many
            out.append(boxes[n])
    return out


def _alike(a: list[Box], b: list[Box]) -> bool:
    def form(boxes: list[Box]) -> list[tuple[Any, ...]]:
        return [(box.title, box.shape, box.parameters, box.forward) for box in boxes]

    return a[0].group != b[0].group and a[0].group != "" and form(a) == form(b)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def graph(what: str, out: Path | None, listener: Listener, settings: dict[str, Any] | None = None) -> Path:
    """Draw a run's network, or the one that `fit` would train on a source; returns where the SVG lies."""
    run = Path(what)
    own = (run / "config.toml").is_file()
    if (run / "study.json").is_file():
        raise ConfigError(f"{what} is a study", hint=f"draw the run that it left: feedfwd graph {run / 'winner'}")
    if own and settings and settings.keys() - {"source"}:
        raise ConfigError(f"{what} is a run with its own settings", hint="draw the source with --set, or the run alone")
    model, x, per, unit, shape = _run(run) if own else _source(settings or {"source": what})
    found = graph_of(model, x, per, unit)
    out = out or (run / "graph.svg" if own else Path(f"{run.stem}-graph.svg"))
    write_text(out, draw(found, f"{type(model).__name__} · {run.name}", shape))
    for line in said(found):
        listener.say(line)
    listener.say(f"graph: {out}")
    return out


def said(g: Graph) -> Iterator[str]:
    yield f"{g.parameters:,} parameters; FLOPs of products and bytes are of one {g.unit}"
    less = f"; {byte_count(g.really)} by the kernels that run here" if g.really < 0.99 * g.kept else ""
    yield f"{count(g.forward)} FLOPs forward, {count(g.backward)} backward; {byte_count(g.kept)} kept in between{less}"


Shown = tuple[nn.Module, Tensor, int, str, str]  # network, input, examples or tokens in it, which of both, shape


def _source(settings: dict[str, Any]) -> Shown:
    with torch.random.fork_rng():
        prepared = prepare(parse(FitConfig, settings))
    return _examples(prepared.model, prepared.train.inputs)


def _examples(model: nn.Module, inputs: Tensor) -> Shown:
    x = inputs[:EXAMPLES].clone()  # not a view: what a layer keeps of it is weighed
    return model, x, len(x), "example", _written(tuple(x.shape[1:]))


def _run(run: Path) -> Shown:
    match verb_of(run):
        case "fit":
            found = Predictor.load(run)  # not by its settings: they'd want the data again
            return _examples(found.model, torch.zeros(EXAMPLES, found.preprocess.width))
        case "pretrain":
            from feedfwd.recipes.writer import Writer

            return _tokens(Writer.load(run).model)
        case "finetune":
            from feedfwd.recipes.classifier import TextClassifier

            model = TextClassifier.load(run).model
            if isinstance(model, Bag):
                x = torch.randint(0, len(model.weights), (EXAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
                return model, x, EXAMPLES, "example", f"{TOKENS} n-grams"
            return _tokens(model)
        case verb:
            raise ConfigError(f"{run} is a run of {verb}", hint="graphs are of fit, pretrain and finetune")


def _tokens(model: nn.Module) -> Shown:
    x = torch.arange(TOKENS)[None] % 7
    return model, x, TOKENS, "token", f"{TOKENS} tokens"


def _written(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "1"
