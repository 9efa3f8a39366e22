import math

import pytest
import torch

from feedfwd.errors import ConfigError
from feedfwd.ffn import ACTIVATIONS, DenseFFN, GatedFFN, activation, initialize
from feedfwd.ffn.init import AUTO, SCHEMES

OUTPUTS, INPUTS = 300, 500


def drawn(scheme: str, seed: int = 0, **how: object) -> torch.Tensor:
    weight = torch.empty(OUTPUTS, INPUTS)
    initialize(weight, scheme, generator=torch.Generator().manual_seed(seed), **how)  # type: ignore[arg-type]
    return weight


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("xavier_uniform", 2 / (INPUTS + OUTPUTS)),
        ("xavier_normal", 2 / (INPUTS + OUTPUTS)),
        ("he_uniform", 2 / INPUTS),
        ("he_normal", 2 / INPUTS),
        ("lecun_uniform", 1 / INPUTS),
        ("lecun_normal", 1 / INPUTS),
        ("truncated_normal", 1 / INPUTS),
        ("depth_scaled", 1 / INPUTS / 8),
    ],
)
def test_variances(scheme: str, variance: float) -> None:
    weight = drawn(scheme, depth=8)
    assert weight.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(weight.mean().item()) < 4 * math.sqrt(variance / weight.numel())
    if scheme.endswith("uniform"):
        assert weight.abs().max().item() <= math.sqrt(3 * variance)
    if scheme == "truncated_normal":
        assert 2 * math.sqrt(variance) < weight.abs().max().item() <= 2.3 * math.sqrt(variance)


def test_orthogonal_rows() -> None:
    weight = drawn("orthogonal")
    torch.testing.assert_close(weight @ weight.T, torch.eye(OUTPUTS), rtol=0, atol=1e-5)
    weight = drawn("orthogonal", activation="relu")
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(OUTPUTS), rtol=0, atol=1e-5)


def test_zero() -> None:
    assert not drawn("zero").any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_seed_repeats_every_scheme_and_its_name_comes_back(scheme: str) -> None:
    assert torch.equal(drawn(scheme, 1), drawn(scheme, 1))
    assert scheme == "zero" or not torch.equal(drawn(scheme, 1), drawn(scheme, 2))
    weight = torch.empty(3, 4)
    chosen = initialize(weight, scheme, activation="tanh")
    assert chosen == ("xavier_uniform" if scheme == "auto" else scheme)


def test_unknown_schemes_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'he_normal'"):
        initialize(torch.empty(2, 2), "he_norml")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_auto_keeps_the_size_of_what_passes(name: str) -> None:
    """Of He's and LeCun's variance it takes the one whose layer comes nearer to the mean square of its input."""
    assert set(AUTO) == set(ACTIVATIONS)
    x = torch.randn(2000, 400, generator=torch.Generator().manual_seed(0))
    logs = {}
    for scheme in ("he_normal", "lecun_normal", "auto"):
        weight = torch.empty(400, 400)
        initialize(weight, scheme, activation=name, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logs[scheme] = abs(activation(name)(x @ weight.T).square().mean().log().item())
    if AUTO[name] == "xavier_uniform":  # its variance on a square matrix is LeCun's; it is taken for the way back
        assert logs["auto"] == pytest.approx(logs["lecun_normal"], abs=0.02)
    else:
        assert logs["auto"] == min(logs.values())


def test_zero_and_depth_scaled_concern_the_output_matrix_alone() -> None:
    for layer in (DenseFFN(16, 32, init="zero"), GatedFFN(16, 32, init="zero")):
        assert not layer(torch.randn(3, 16)).any()
        assert layer.down.init == "zero"
    assert DenseFFN(16, 32, init="zero").up.init == "he_normal"
    torch.manual_seed(0)
    deep, shallow = DenseFFN(64, 256, init="depth_scaled", depth=16), DenseFFN(64, 256, init="depth_scaled")
    for part, ratio in (("down", 1 / 4), ("up", 1.0)):
        spreads = [getattr(layer, part).weight.std().item() for layer in (deep, shallow)]
        assert spreads[0] / spreads[1] == pytest.approx(ratio, rel=0.05)


def test_layers_say_what_auto_took() -> None:
    assert "init=he_normal" in repr(DenseFFN(4, 8)) and "init=lecun_normal" in repr(DenseFFN(4, 8))
    assert GatedFFN(4, 8, "silu").init == "he_normal + lecun_normal"
    assert GatedFFN(4, 8, "bilinear").init == "lecun_normal"
    assert "init=orthogonal" in repr(GatedFFN(4, 8, init="orthogonal"))


def test_a_packed_parameter_starts_as_the_two_matrices_it_holds() -> None:
    """Not as one matrix of twice the rows, whose Glorot variance would be smaller and whose rows all orthogonal."""
    _, up = GatedFFN(48, 32, init="orthogonal").gate_up.detach().chunk(2)
    torch.testing.assert_close(up @ up.T, torch.eye(32), rtol=0, atol=1e-5)
    gate, up = GatedFFN(400, 400, init="xavier_normal").gate_up.detach().chunk(2)
    assert gate.var().item() == pytest.approx(2 / 800, rel=0.03) and up.var().item() == pytest.approx(2 / 800, rel=0.03)
