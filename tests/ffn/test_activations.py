import pytest
import torch
import torch.nn.functional as F
from torch import nn

from feedfwd.errors import ConfigError
from feedfwd.ffn import ACTIVATIONS, GATED, activation
from feedfwd.ffn.activations import XIELU


def test_torch_s_own_module_is_taken_wherever_there_is_one() -> None:
    own = {name for name in ACTIVATIONS if not type(activation(name)).__module__.startswith("torch.nn")}
    assert own == {"relu2", "xielu"}


def test_gelu_comes_exact_and_by_tanh() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(activation("gelu")(x), x * torch.distributions.Normal(0, 1).cdf(x))
    torch.testing.assert_close(activation("gelu_tanh")(x), F.gelu(x, approximate="tanh"))
    assert not torch.equal(activation("gelu")(x), activation("gelu_tanh")(x))


def test_xielu_starts_as_in_the_paper_and_is_smooth_at_zero() -> None:
    f = XIELU().double()
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    expected = [0.8 * (torch.exp(x[0]) - 1 + 2) - 1, 0, 0.8 * 9 + 1.5]
    torch.testing.assert_close(f(x).tolist(), [float(v) for v in expected], rtol=1e-6, atol=1e-6)
    near = torch.tensor([-1e-6, 1e-6], dtype=torch.float64, requires_grad=True)
    f(near).sum().backward()
    torch.testing.assert_close(near.grad, torch.full_like(near, 0.5), rtol=1e-4, atol=0)


def test_xielu_s_slope_is_the_affine_elu_it_integrates() -> None:
    """2 αₚ x + β above zero, αₙ (eˣ - 1) + β below: section 3 of the paper."""
    f = XIELU().double()
    x = torch.linspace(-4, 4, 33, dtype=torch.float64, requires_grad=True)
    f(x).sum().backward()
    slope = torch.where(x > 0, 1.6 * x, 0.8 * torch.expm1(x)) + 0.5
    torch.testing.assert_close(x.grad, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_stay_finite_far_out(name: str) -> None:
    x = torch.tensor([-100.0, -1.0, 0.0, 1.0, 100.0], requires_grad=True)
    y = activation(name)(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'relu'"):
        activation("rellu")


@pytest.mark.parametrize("name", GATED)
def test_a_gated_name_is_no_activation_and_the_error_says_what_is(name: str) -> None:
    with pytest.raises(ConfigError, match=f"kind='gated', or '{GATED[name]}'"):
        activation(name)


def test_each_call_gives_parameters_of_its_own() -> None:
    assert activation("xielu").alpha_p is not activation("xielu").alpha_p
    assert isinstance(activation("relu"), nn.ReLU)
