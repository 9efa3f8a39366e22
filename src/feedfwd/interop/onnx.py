"""Models to ONNX, for runtimes that have no torch.

The file is checked before it counts as written: onnxruntime, where it is installed, runs it on a batch of another size
and must agree with torch.
"""

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from feedfwd.errors import ConfigError, MissingExtra

EXTERNAL = 2**30  # bytes from which the weights get a file of their own: protobuf ends at 2 GiB
TOLERANCE = 1e-4  # relative to the largest output
HINT = "a layer must be made of torch's operations, without a Python branch on values, for any size of the free axes"


@dataclass(frozen=True, slots=True)
class Exported:
    """A written file, and how far onnxruntime's outputs are from torch's, at most; None where it isn't installed."""

    path: Path
    difference: float | None


def export_onnx(
    model: nn.Module, path: Path | str, example: Tensor, *, dynamic: Mapping[int, str] | None = None
) -> Exported:
    """Write a model of one tensor in, one tensor out, as it computes in evaluation; inputs `inputs` and `outputs`.

    `example` is any input, such as a batch of zeros. `dynamic` names the axes whose size is free, {0: "batch"} unless
    told otherwise; an adapter that isn't merged is written as it computes. Raises MissingExtra where onnx isn't
    installed, and ConfigError for a model that can't be written, such as one with a layer of one's own whose Python
    depends on values.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise MissingExtra(f"exporting needs {' and '.join(missing)}", hint='pip install "feedfwd[export]"')
    dynamic = {0: "batch"} if dynamic is None else dynamic
    if wrong := {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}:
        raise ConfigError(f"the model holds {', '.join(sorted(wrong))}", hint="export model.float()")
    for axis in dynamic:  # a size of 1 would be taken for a constant
        example = torch.cat([example, example], axis) if example.shape[axis] == 1 else example
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with _evaluating(model), _quiet():
        try:
            shapes = {axis: torch.export.Dim(name) for axis, name in dynamic.items()}
            graph = torch.export.export(model, (example,), dynamic_shapes=(shapes,))
            program = torch.onnx.export(
                graph, dynamo=True, input_names=["inputs"], output_names=["outputs"], verbose=False
            )
        except Exception as error:  # whatever a layer's own code may raise while it is traced
            raise ConfigError(f"{_whose(model)} can't be exported: {_first_line(error)}", hint=HINT) from error
        assert program is not None
        program.save(path, external_data=size > EXTERNAL)
        return Exported(path, _difference(model, path, example, dynamic))


def _difference(model: nn.Module, path: Path, example: Tensor, dynamic: Mapping[int, str]) -> float | None:
    """The largest difference between the two on an input of other sizes, relative to the largest output."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime  # type: ignore[import-untyped]

    for axis in dynamic:
        example = torch.cat([example, example.narrow(axis, 0, 1)], axis)
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example.device)
    inputs = example + noise if example.is_floating_point() else example
    with torch.no_grad():
        expected = model(inputs).cpu()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"inputs": inputs.cpu().numpy()})
    scale = max(1.0, expected.abs().max().item())
    difference = (torch.from_numpy(outputs) - expected).abs().max().item() / scale
    if not difference <= TOLERANCE:
        path.unlink()
        hint = "please report the layer that does so"
        raise ConfigError(f"{_whose(model)}: onnxruntime's outputs differ from torch's by {difference:.1e}", hint=hint)
    return difference


def _whose(model: nn.Module) -> str:
    """The model's class, and those of its layers that neither torch nor feedfwd brought."""
    kinds = dict.fromkeys(type(module) for module in model.modules())
    own = [k.__qualname__ for k in kinds if k.__module__.partition(".")[0] not in ("torch", "feedfwd")]
    name = type(model).__qualname__
    return name if not own or own == [name] else f"{name} with {', '.join(own)}"


def _first_line(error: BaseException) -> str:
    """What went wrong at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and each module back in its own afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: packages that nothing here needs, pages on what an error says in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
