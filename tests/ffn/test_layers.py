import numpy as np
import pytest
import torch
from torch.nn import functional as F

import feedfwd as ff
from feedfwd.errors import ConfigError
from feedfwd.ffn import ACTIVATIONS, GATED, GatedLinear, activation
from feedfwd.testing import check_ffn

WIDTH, HIDDEN = 6, 10


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense_is_its_formula(name: str, bias: bool) -> None:
    layer = ff.DenseFFN(WIDTH, HIDDEN, activation=name, bias=bias)
    x = torch.randn(3, 4, WIDTH)
    hidden = activation(name)(F.linear(x, layer.up.weight, layer.up.bias))
    torch.testing.assert_close(layer(x), F.linear(hidden, layer.down.weight, layer.down.bias))
    assert (layer.up.bias is not None) == bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "gate"), GATED.items())
def test_gated_is_its_formula_with_the_gate_first(kind: str, gate: str, bias: bool) -> None:
    layer = ff.GatedFFN(WIDTH, HIDDEN, activation=kind, bias=bias)
    assert layer.gate_up.shape == (2 * HIDDEN, WIDTH) and isinstance(layer.gate_up, torch.nn.Parameter)
    w_gate, w_up = layer.gate_up[:HIDDEN], layer.gate_up[HIDDEN:]
    b_gate = b_up = torch.zeros(HIDDEN)
    if bias:
        torch.nn.init.normal_(layer.gate_up_bias)
        b_gate, b_up = layer.gate_up_bias[:HIDDEN], layer.gate_up_bias[HIDDEN:]
    x = torch.randn(3, 4, WIDTH)
    expected = layer.down(activation(gate)(x @ w_gate.T + b_gate) * (x @ w_up.T + b_up))
    torch.testing.assert_close(layer(x), expected)
    by_gate = ff.GatedFFN(WIDTH, HIDDEN, activation=gate, bias=bias)
    by_gate.load_state_dict(layer.state_dict())
    assert torch.equal(by_gate(x), layer(x))


def test_a_packed_parameter_is_declared_for_those_who_work_on_matrices() -> None:
    assert ff.GatedFFN.packed == GatedLinear.packed == {"gate_up": 2}


def test_norm_acts_on_the_input_and_dropout_on_the_hidden_activations() -> None:
    x = 5 + 3 * torch.randn(4, WIDTH)
    for kind in (ff.DenseFFN, ff.GatedFFN):
        layer, plain = kind(WIDTH, HIDDEN, norm="rms"), kind(WIDTH, HIDDEN)
        plain.load_state_dict(layer.state_dict(), strict=False)
        torch.testing.assert_close(layer(x), plain(F.rms_norm(x, (WIDTH,), eps=1e-6)))
        most = kind(WIDTH, 4000, dropout=0.75)
        seen = []
        most.down.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        most(torch.ones(1, WIDTH))
        most.eval()(torch.ones(1, WIDTH))
        kept = (seen[0] != 0).float().sum() / (seen[1] != 0).float().sum()
        assert kept.item() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("kind", [ff.DenseFFN, ff.GatedFFN])
@pytest.mark.parametrize("norm", [None, "layer", "rms"])
def test_built_in_layers_keep_every_promise(kind: type, norm: str | None) -> None:
    check_ffn(
        lambda width, hidden, activation="silu", bias=True, dropout=0.0: kind(
            width, hidden, activation, bias, dropout, norm=norm
        )
    )


def test_they_compile() -> None:
    """The graph is whole: nothing in a layer falls back to Python."""
    for layer in (ff.DenseFFN(WIDTH, HIDDEN, norm="layer"), ff.GatedFFN(WIDTH, HIDDEN, bias=True)):
        x = torch.randn(5, WIDTH)
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ff.DenseFFN(0, 4), "width=0 is not a whole number"),
        (lambda: ff.DenseFFN(4, -1), "hidden=-1 is not a whole number"),
        (lambda: ff.GatedFFN(4, 2.5), "hidden=2.5 is not a whole number"),
        (lambda: ff.DenseFFN(True, 4), "width=True"),
        (lambda: ff.DenseFFN(4, 4, dropout=1.0), "dropout=1.0 is not a probability below 1"),
        (lambda: ff.DenseFFN(4, 4, dropout=float("nan")), "dropout=nan"),
        (lambda: ff.DenseFFN(4, 4, norm="batch"), "mixes tokens"),
        (lambda: ff.DenseFFN(4, 4, norm="lyer"), "did you mean 'layer'"),
        (lambda: ff.DenseFFN(4, 4, activation="swiglu"), "kind='gated', or 'silu'"),
        (lambda: ff.GatedFFN(4, 4, activation="swigloo"), "unknown activation 'swigloo'"),
        (lambda: ff.DenseFFN(4, 4, init="hee"), "unknown initialisation"),
    ],
)
def test_impossible_settings_say_so(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_numpy_integers_are_sizes() -> None:
    assert ff.DenseFFN(np.int64(4), np.int32(8))(torch.zeros(1, 4)).shape == (1, 4)
