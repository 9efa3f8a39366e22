import sys
from pathlib import Path

import pytest
import torch

from feedfwd.errors import ConfigError
from feedfwd.ffn import DenseFFN, FFNSpec, GatedFFN, build_ffn


@pytest.mark.parametrize("bias", [True, False])
def test_dense_by_spec(bias: bool) -> None:
    spec = FFNSpec(activation="gelu", bias=bias, dropout=0.2, init="orthogonal")
    layer = build_ffn(spec, 8, 32, norm="rms")
    assert type(layer) is DenseFFN
    assert isinstance(layer.activation, torch.nn.GELU) and layer.dropout.p == 0.2 and layer.up.init == "orthogonal"
    assert isinstance(layer.norm, torch.nn.RMSNorm) and (layer.up.bias is not None) == bias


@pytest.mark.parametrize(
    ("spec", "sigma"),
    [
        (FFNSpec(activation="swiglu"), torch.nn.SiLU),
        (FFNSpec(kind="gated", activation="swiglu"), torch.nn.SiLU),
        (FFNSpec(kind="gated", activation="gelu"), torch.nn.GELU),
        (FFNSpec(activation="bilinear"), torch.nn.Identity),
    ],
)
def test_gated_by_spec(spec: FFNSpec, sigma: type) -> None:
    layer = build_ffn(spec, 8, 32)
    assert type(layer) is GatedFFN and type(layer.activation) is sigma


def test_a_generator_repeats_a_layer() -> None:
    for spec in (FFNSpec(), FFNSpec(activation="swiglu")):
        first, second = (build_ffn(spec, 8, 32, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_layer_of_ones_own_gets_what_it_takes() -> None:
    spec = FFNSpec(kind="stranger:Maxout", activation="gelu", dropout=0.3, bias=False, options={"pieces": 3})
    layer = build_ffn(spec, 8, 32)
    assert layer.up.weight.shape == (96, 8) and layer.up.bias is None and layer.drop.p == 0.3 and layer.training


def test_options_may_say_what_the_spec_says_too() -> None:
    assert build_ffn(FFNSpec(kind="stranger:Maxout", options={"bias": False}), 8, 32).up.bias is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "dence"}, "unknown ffn.kind='dence': did you mean 'dense'"),
        ({"options": {"pieces": 3}}, "ffn.options is not for ffn.kind='dense'"),
        ({"kind": "no_such_module_here:Maxout"}, "there is no module 'no_such_module_here'.*PYTHONPATH"),
        ({"kind": "stranger.inner:Maxout"}, "no module 'stranger.inner'"),
        ({"kind": "stranger:Maxuot"}, "module 'stranger' has no 'Maxuot'.*did you mean 'Maxout'"),
        ({"kind": "stranger:not_a_class"}, "'not_a_class' is no torch.nn.Module class"),
        ({"kind": "json:loads"}, "'loads' is no torch.nn.Module class: json defines no torch.nn.Module"),
        ({"kind": ":Maxout"}, "importing '' failed.*package.module:Class"),
        ({"kind": "stranger:Maxout", "options": {"peaces": 3}}, "unexpected keyword argument 'peaces'.*pieces: int"),
        (
            {"kind": "stranger:Maxout", "options": {"pieces": 1}},
            "hidden=32 and one token it raised ValueError: pieces=1",
        ),
        ({"kind": "stranger:Narrow"}, r"an input of shape \(1, 8\) gave the shape \(1, 1\).*check_ffn"),
        ({"kind": "stranger:Narrow", "dropout": 0.1}, "stranger:Narrow takes no dropout"),
        ({"kind": "torch.nn:Bilinear"}, "refuses its arguments"),
    ],
)
def test_what_can_t_be_built_says_why(spec: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_ffn(FFNSpec(**spec), 8, 32)


def test_a_module_that_fails_to_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_written.py").write_text("import a_module_nobody_has\n")
    (tmp_path / "broken.py").write_text("class Layer(\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="there is no module 'a_module_nobody_has'"):
        build_ffn(FFNSpec(kind="half_written:Layer"), 8, 32)
    with pytest.raises(ConfigError, match="importing 'broken' failed"):
        build_ffn(FFNSpec(kind="broken:Layer"), 8, 32)
    assert "half_written" not in sys.modules
