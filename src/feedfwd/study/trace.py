"""What a network does with an example, forward and backward, measured: steps, shapes, FLOPs, bytes kept.

Nothing is looked up in formulas. One forward and one backward pass run while torch's own FlopCounterMode counts and
every tensor that autograd saves is weighed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from feedfwd.ffn.kernels import plain
from feedfwd.models.attention import plan as blocks

INPUT = -1  # the number of the step that gives the input
EMPTY = ("new_empty", "empty_like", "new_zeros", "zeros_like")  # what they take decides a shape alone
LAYOUT = ("flatten", "reshape", "contiguous", "clone", "to", "float", "type_as")  # copies, where they are any


@dataclass
class Step:
    """One torch function that made something new of what the input became; counts are of the whole batch."""

    op: str  # as torch calls it
    path: str  # of the module that called it: "blocks.0.ffn"
    module: nn.Module
    call: int  # which call of that module
    shape: tuple[int, ...]  # of what comes out
    reads: frozenset[int]  # numbers of the steps that it takes something from
    parameters: int = 0  # that no step before has used
    forward: int = 0  # FLOPs
    backward: int = 0
    kept: int = 0  # bytes for the backward pass that no step before has kept


@dataclass
class Trace:
    steps: list[Step] = field(default_factory=list)

    def total(self, name: str) -> int:
        return sum(getattr(step, name) for step in self.steps)


def trace(model: nn.Module, x: Tensor) -> Trace:
    """Run `model` on `x` in training mode, forward and backward; its weights stay, its gradients are dropped.

    Feed-forward layers take their plain formula, which has steps to show; what their kernels keep, `kept` tells. Bytes
    kept are those of autograd's tensors: without weights, with the input where a step keeps it.
    """
    before = model.training
    measured = _Measured(model.train(), x)
    with plain():
        measured.run()
    model.train(before)
    return Trace(measured.steps)


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass in training mode keeps for the backward pass, by whatever runs here."""
    before, total, held = model.training, 0, []
    seen = {_at(t) for t in [*model.parameters(), *model.buffers()]}

    def pack(t: Tensor) -> Tensor:
        nonlocal total
        if (at := _at(t)) not in seen:
            seen.add(at)
            held.append(t)  # no address comes twice
            total += t.untyped_storage().nbytes()
        return t

    with torch.random.fork_rng(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.train()(x)
    model.train(before)
    return total


def _attention(q: Sequence[int], k: Any, v: Any, documents: Any, causal: bool, window: int, *_: Any, **__: Any) -> int:
    """FLOPs of q kᵀ and p v by blocks of queries, which leave out keys that nobody of them sees."""
    (B, H, T, D) = q
    return 4 * B * H * D * sum(block.size for block in blocks(T, causal, window))


def _attention_backward(
    dy: Any, q: Sequence[int], k: Any, v: Any, kept: Sequence[int], documents: Any, causal: bool, window: int, **_: Any
) -> int:
    """Four products; one more where the probabilities weren't kept."""
    again = 0 if kept[0] else 1
    return _attention(q, k, v, documents, causal, window) * (4 + again) // 2


OWN = {torch.ops.feedfwd.attention: _attention, torch.ops.feedfwd.attention_backward: _attention_backward}


class _Measured(TorchFunctionMode):
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model, self.x = model, x
        self.steps: list[Step] = []
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[tuple[nn.Module, int]] = []
        self.calls = 0
        self.counter = FlopCounterMode(display=False, custom_mapping=OWN)
        self.now: Step | None = None
        self.alive: list[Any] = []  # no address comes twice while these are held
        self.made: dict[int, frozenset[int]] = {}  # by storage: the steps that what lies there comes from
        self.weighed = {_at(t) for t in [*model.parameters(), *model.buffers()]}
        self.parameters = {_at(p): p.numel() for p in model.parameters()}
        self.nodes: set[Any] = {None}

    def run(self) -> None:
        self.made[_at(self.x)] = frozenset({INPUT})
        with ExitStack() as stack:
            for hook in (register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)):
                stack.callback(hook.remove)
            stack.enter_context(torch.random.fork_rng())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.counter)
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t), self:
                out = self.model(self.x)
            self._own_nodes(out)
            out.backward(torch.ones_like(out))
        for parameter in self.model.parameters():
            parameter.grad = None
        self.alive.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.stack:
            return func(*args, **(kwargs or {}))
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").split(".")[0].strip("_")
        taken = list(_tensors((args, kwargs)))
        module, call = self.stack[-1]
        reads = frozenset[int]().union(*(self.made.get(_at(t), frozenset()) for t in taken if name not in EMPTY))
        step = Step(name, self.names.get(id(module), ""), module, call, (), reads)
        written = {_at(t) for t in _tensors(kwargs.get("out"))}
        before = {_at(t) for t in taken} - written
        start, self.now = self.counter.get_total_flops(), step
        out = func(*args, **kwargs)
        self.now, step.forward = None, self.counter.get_total_flops() - start
        new = [t for t in _tensors(out) if _at(t) not in before]
        self.alive += [*taken, *new]
        used = sum(self.parameters.pop(_at(t), 0) for t in taken) if new else 0
        if reads and (step.forward or step.kept or (any(map(_real, new)) and name not in LAYOUT)):
            step.shape = tuple((new or taken)[0].shape)
            step.parameters = used
            reads = frozenset({len(self.steps)})
            self.steps.append(step)
        elif used:  # packed with others, say: whoever takes that uses them
            self.parameters[_at(new[0])] = used
        for t in new:
            self.made[_at(t)] = reads
        self._own_nodes(*new)
        return out

    def _pack(self, t: Tensor) -> Tensor:
        if (at := _at(t)) not in self.weighed:
            self.weighed.add(at)
            self.alive.append(t)
            step = self.now or self.steps[-1]  # no step: an autograd function of its own saves at its end
            step.kept += t.untyped_storage().nbytes()
        return t

    def _own_nodes(self, *outputs: Any) -> None:
        """What autograd has just noted for the backward pass belongs to the latest step: count its FLOPs there."""
        found = [t.grad_fn for t in outputs]
        while found:
            node = found.pop()
            if node in self.nodes or not self.steps:
                continue
            self.nodes.add(node)
            found += [before for before, _ in node.next_functions]
            self._watch(node, self.steps[-1])

    def _watch(self, node: Any, step: Step) -> None:
        start = 0

        def begin(gradients: Any) -> None:
            nonlocal start
            start = self.counter.get_total_flops()

        def end(inputs: Any, outputs: Any) -> None:
            step.backward += self.counter.get_total_flops() - start

        node.register_prehook(begin)
        node.register_hook(end)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.calls += 1
        self.stack.append((module, self.calls))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.stack.pop()
        self._own_nodes(*_tensors(output))  # of an autograd function of its own, whose inside has no nodes


def _at(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _real(t: Tensor) -> bool:
    return t.is_floating_point()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
