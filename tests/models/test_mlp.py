import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import feedfwd as ff
from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn import ACTIVATIONS, GATED, activation
from feedfwd.models.mlp import ResidualLayer

SIZES = [5, 8, 6, 3]


def test_plain_is_its_formula() -> None:
    model = ff.MLP(SIZES, "tanh", norm="layer").eval()
    x = h = torch.randn(7, 5)
    for block in model.blocks:
        h = torch.tanh(F.linear(h, block.linear.weight, block.linear.bias))
        h = F.layer_norm(h, h.shape[1:])
    torch.testing.assert_close(model(x), F.linear(h, model.head.weight, model.head.bias))


@pytest.mark.parametrize(("kind", "gate"), GATED.items())
def test_gated_layers_are_packed_products(kind: str, gate: str) -> None:
    model = ff.MLP(SIZES, kind)
    x = h = torch.randn(7, 5)
    for block in model.blocks:
        w_gate, w_up = block.linear.gate_up.chunk(2)
        h = activation(gate)(h @ w_gate.T) * (h @ w_up.T)  # the biases are zero at the start
    torch.testing.assert_close(model(x), F.linear(h, model.head.weight, model.head.bias))
    assert ff.MLP(SIZES, gate, kind="gated").blocks[0].linear.gate_up.shape == (16, 5)


def test_residual_is_its_formula() -> None:
    model = ff.MLP([5, 8, 8, 6, 3], "gelu", residual=True)
    x = torch.randn(7, 5)
    h = model.stem(x)
    for block in model.blocks:
        h = block.resize(h)
        h = h + block.ffn(F.layer_norm(h, h.shape[1:]))
    torch.testing.assert_close(model(x), model.head(F.layer_norm(h, h.shape[1:])))
    assert [type(block.resize) for block in model.blocks[:2]] == [nn.Identity, nn.Identity]
    assert model.blocks[2].resize.weight.shape == (6, 8)
    assert model.blocks[0].ffn.up.weight.shape == (16, 8)


def test_a_residual_network_that_starts_at_zero_branches_is_linear() -> None:
    model = ff.MLP([5, 8, 8, 3], residual=True, init="zero", norm="rms")
    x = torch.randn(7, 5)
    torch.testing.assert_close(model(x), model.head(model.norm(model.stem(x))))
    assert model(x).std() > 0  # the head itself doesn't start at zero


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", [*ACTIVATIONS, *GATED])
def test_any_activation_trains(name: str, residual: bool) -> None:
    torch.manual_seed(0)
    model = ff.MLP([2, 16, 16, 2], name, residual=residual)
    x = torch.rand(256, 2) * 2 - 1
    y = (x.prod(1) > 0).long()  # no line separates these
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(300 if name == "sigmoid" else 100):  # sigmoid starts slowly
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    if name == "identity" and not residual:
        assert accuracy < 0.7
    else:
        assert accuracy > 0.93


@pytest.mark.parametrize("depth", [0, 1, 2, 20])
def test_any_depth(depth: int) -> None:
    model = ff.MLP([5] + depth * [4] + [3])
    assert model(torch.randn(7, 5)).shape == (7, 3) and len(model.blocks) == depth


def test_examples_are_flattened() -> None:
    model = ff.MLP([12, 8, 3])
    x = torch.randn(7, 3, 4)
    assert torch.equal(model(x), model(x.flatten(1)))
    assert model(torch.zeros(0, 3, 4)).shape == (0, 3)


@pytest.mark.parametrize("shape", [(12,), (7, 11), (7, 12, 2), ()])
def test_another_width_is_an_error_with_both_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"takes 12 values an example.*\(N, 12\)"):
        ff.MLP([12, 8, 3])(torch.zeros(shape))


def test_a_layer_of_ones_own_works_as_a_built_in_one_does() -> None:
    torch.manual_seed(0)
    model = ff.MLP([2, 16, 2], kind="stranger:Maxout", dropout=0.1, options={"pieces": 3})
    ffn = model.blocks[0].ffn
    assert isinstance(model.blocks[0], ResidualLayer) and ffn.pieces == 3 and ffn.drop.p == 0.1
    x = torch.rand(256, 2) * 2 - 1
    y = (x.prod(1) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.93
    assert model.layers()[1].flops == 2 * (16 * 3 * 32 + 32 * 16)


def test_seeds_and_generators_repeat_the_weights() -> None:
    def state(seed: int | None = None, **how: object) -> list[torch.Tensor]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return list(ff.MLP([5, 8, 8, 6, 3], generator=generator, **how).state_dict().values())

    for how in ({}, {"activation": "swiglu"}, {"residual": True}, {"activation": "geglu", "residual": True}):
        for a, b in zip(state(3, **how), state(3, **how), strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(state(3, **how)[0], state(4, **how)[0])
        torch.manual_seed(0)
        first = state(**how)
        torch.manual_seed(0)
        for a, b in zip(first, state(**how), strict=True):
            assert torch.equal(a, b)


def test_noise_and_dropouts_act_while_training_alone() -> None:
    x = torch.ones(4000, 5)
    for how in ({"noise": 0.3}, {"dropout": 0.5}, {"input_dropout": 0.2}):
        for residual in (False, True):
            model = ff.MLP(SIZES, residual=residual, **how)
            assert not torch.equal(model(x), model(x))
            model.eval()
            assert torch.equal(model(x), model(x))
    model = ff.MLP([5, 8, 3], noise=0.3, input_dropout=0.2)
    seen: list[torch.Tensor] = []
    model.blocks[0].linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    dropped = seen[0] < 0.6  # 0 + noise against 1.25 + noise
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert seen[0][~dropped].std().item() == pytest.approx(0.3, abs=0.02)


def test_batch_normalisation() -> None:
    model = ff.MLP(SIZES, norm="batch")
    seen: list[torch.Tensor] = []
    model.blocks[0].norm.register_forward_hook(lambda _m, _i, output: seen.append(output))
    x = 5 + 2 * torch.randn(64, 5)
    model(x)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    assert any(name.endswith("running_mean") for name in model.state_dict())
    model.eval()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_accounting() -> None:
    model = ff.MLP([784, 128, 128, 10])
    assert model.parameter_count == 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    assert model.flops == 2 * (784 * 128 + 128 * 128 + 128 * 10)
    rows = model.layers()
    assert [(row.name, row.init) for row in rows] == [
        ("blocks.0", "he_normal"),
        ("blocks.1", "he_normal"),
        ("head", "lecun_normal"),
    ]
    assert ff.MLP([784, 128, 128, 10], "swiglu").layers()[0].flops == 2 * rows[0].flops


@pytest.mark.parametrize("how", [{}, {"norm": "batch"}, {"residual": True}, {"residual": True, "activation": "swiglu"}])
def test_accounting_agrees_with_torch_s_own_counter(how: dict) -> None:
    model = ff.MLP([20, 12, 16, 10], **how).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 20))
    assert model.flops == counter.get_total_flops()
    assert sum(row.parameters for row in model.layers()) == model.parameter_count


def test_copies_and_state() -> None:
    model = ff.MLP(SIZES, "xielu", norm="batch", residual=True)
    other = copy.deepcopy(model)
    fresh = ff.MLP(SIZES, "xielu", norm="batch", residual=True)
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(7, 5)
    assert torch.equal(model.eval()(x), other.eval()(x)) and torch.equal(model(x), fresh.eval()(x))


def test_the_graph_is_whole() -> None:
    x = torch.randn(7, 5)
    for how in ({}, {"activation": "swiglu", "norm": "batch"}, {"residual": True}):
        model = ff.MLP(SIZES, **how).eval()
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize(
    ("sizes", "how", "message"),
    [
        ([5], {}, "lacks inputs or outputs"),
        ([5, 0, 3], {}, r"sizes\[1\]=0 is not a whole number"),
        ([5, 2.5, 3], {}, r"sizes\[1\]=2.5"),
        ([5, 3], {"residual": True}, "no hidden layer to be residual"),
        ([5, 4, 3], {"residual": True, "expansion": 0}, "expansion=0"),
        ([5, 4, 3], {"activation": "rellu"}, "did you mean 'relu'"),
        ([5, 4, 3], {"kind": "dence"}, "did you mean 'dense'"),
        ([5, 4, 3], {"kind": "no_such_module_here:Layer"}, "there is no module"),
        ([5, 4, 3], {"init": "xavier"}, "unknown initialisation 'xavier'"),
        ([5, 4, 3], {"norm": "bach"}, "did you mean 'batch'"),
        ([5, 4, 3], {"dropout": 1.0}, "dropout=1.0 can't be used"),
        ([5, 4, 3], {"input_dropout": -0.1}, "input_dropout=-0.1"),
        ([5, 4, 3], {"noise": -1.0}, "noise=-1.0 is no standard deviation"),
        ([5, 4, 3], {"noise": float("nan")}, "noise=nan"),
        ([5, 4, 3], {"options": {"a": 1}}, "ffn.options"),
    ],
)
def test_impossible_settings_say_so(sizes: list, how: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ff.MLP(sizes, **how)
