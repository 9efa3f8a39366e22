"""Export: onnxruntime and torch.export give what torch gives, for any batch size."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feedfwd.errors import ConfigError, MissingExtra
from feedfwd.ffn import ACTIVATIONS, GATED, DenseFFN, GatedFFN
from feedfwd.ffn.lora import adapt, adapter_state, merge
from feedfwd.interop.onnx import export_onnx
from feedfwd.models.mlp import MLP

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

D, H = 8, 12
GENERATOR = torch.Generator().manual_seed(0)


def outputs(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["inputs"]
    return torch.from_numpy(session.run(["outputs"], {"inputs": x.numpy()})[0])


def agree(model: nn.Module, path: Path, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        x = 2 * torch.randn(shape, generator=GENERATOR)
        with torch.no_grad():
            torch.testing.assert_close(outputs(path, x), model.eval()(x), atol=1e-4, rtol=1e-4)


class Side(nn.Module):
    """Many layers on one input: one export for all of them."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers])


def layers(names: list[str]) -> Side:
    torch.manual_seed(0)
    made = [kind(D, H, name, bias=True, norm=norm) for name, (kind, norm) in itertools.product(names, FORMS)]
    for parameter in itertools.chain.from_iterable(layer.parameters() for layer in made):
        if parameter.ndim == 1:
            parameter.data += 0.1
    return Side(made)


FORMS = [(DenseFFN, "layer"), (GatedFFN, "rms")]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["gelu", "silu"], id="two"),
        pytest.param(list(ACTIVATIONS), id="all", marks=pytest.mark.slow),
    ],
)
def test_layers_in_onnxruntime(names: list[str], tmp_path: Path) -> None:
    model = layers(names)
    done = export_onnx(model, tmp_path / "m.onnx", torch.zeros(1, 3, D), dynamic={0: "batch", 1: "tokens"})
    assert done.path == tmp_path / "m.onnx" and done.difference is not None and done.difference < 1e-4
    agree(model, done.path, (1, 3, D), (5, 3, D), (64, 7, D), (2, 1, D))


@pytest.mark.parametrize("settings", [{"activation": "gelu", "dropout": 0.5}, {"activation": "swiglu", "norm": "rms"}])
def test_whole_networks_in_onnxruntime(settings: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MLP([6, 16, 10, 3], **settings)
    export_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 6))
    assert model.training and all(module.training for module in model.modules()), "the model goes on training"
    agree(model, tmp_path / "net.onnx", (1, 6), (4, 6), (257, 6))


@pytest.mark.slow
@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
@pytest.mark.parametrize("form", [{}, {"residual": True}, {"norm": "batch"}])
def test_every_network_in_onnxruntime(activation: str, form: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MLP([6, 16, 10, 3], activation=activation, **form)
    model(torch.randn(32, 6))  # statistics for a batch norm
    export_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 6))
    agree(model, tmp_path / "net.onnx", (1, 6), (33, 6))


def test_an_adapted_layer_merged_and_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(GatedFFN(D, H, bias=True), DenseFFN(D, H))
    adapt(model, ["*"], rank=2, dropout=0.5, method="dora")
    for tensor in adapter_state(model).values():
        tensor += 0.1 * torch.randn(tensor.shape)
    export_onnx(model, tmp_path / "a.onnx", torch.zeros(2, D))
    agree(model, tmp_path / "a.onnx", (5, D))
    export_onnx(merge(model), tmp_path / "b.onnx", torch.zeros(2, D))
    agree(model, tmp_path / "b.onnx", (5, D))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_layers_by_torch_export(name: str) -> None:
    model = layers([name]).eval()
    program = torch.export.export(model, (torch.zeros(2, D),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(9, D)
    torch.testing.assert_close(program.module()(x), model(x))


def test_a_network_by_torch_export() -> None:
    model = MLP([6, 16, 3], "swiglu", residual=True).eval()
    program = torch.export.export(model, (torch.zeros(2, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(9, 6)
    torch.testing.assert_close(program.module()(x), model(x))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, D)


class Leaves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sin(x.numpy()))


@pytest.mark.parametrize("own", [Branches, OneSize, Leaves])
def test_what_can_t_be_exported_says_so(
    own: type[nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(D, D), own())
    with pytest.raises(ConfigError, match=f"Sequential with {own.__name__} can't be exported: ") as caught:
        export_onnx(model.requires_grad_(False), tmp_path / "m.onnx", torch.zeros(4, D))
    assert "\n" not in str(caught.value) and not (tmp_path / "m.onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch\.bfloat16: export model.float\(\)"):
        export_onnx(nn.Linear(2, 2).bfloat16(), tmp_path / "m.onnx", torch.zeros(1, 2))


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(MissingExtra, match=r"needs onnxscript: pip install \"feedfwd\[export\]\""):
        export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", torch.zeros(1, 2))


def test_a_file_that_disagrees_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedfwd.interop.onnx.TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="differ from torch's"):
        export_onnx(nn.Linear(2, 2), tmp_path / "m.onnx", torch.zeros(1, 2))
    assert not (tmp_path / "m.onnx").exists()
