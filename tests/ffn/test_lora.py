"""Adapters on whole models: matching, training, switching, merging, keeping."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedfwd.errors import ConfigError
from feedfwd.ffn.dense import DenseFFN
from feedfwd.ffn.gated import GatedFFN, GatedLinear
from feedfwd.ffn.lora import (
    activate,
    adapt,
    adapter_state,
    load_adapter_state,
    lora_layers,
    merge,
    unmerge,
    unwrap,
)
from feedfwd.ffn.lora_linear import Adapter, LoRALinear

WIDTH, HIDDEN = 12, 20


class Block(nn.Module):
    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.norm, self.ffn = nn.LayerNorm(WIDTH), ffn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm(x))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Block(GatedFFN(WIDTH, HIDDEN, bias=True)), Block(DenseFFN(WIDTH, HIDDEN, "gelu"))]
    return nn.Sequential(nn.Linear(6, WIDTH), *blocks, GatedLinear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)).eval()


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def stir(model: nn.Module, name: str = "default", seed: int = 2) -> None:
    """Tensors as training might leave them."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_state(model, name).values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(method: str) -> None:
    model = network()
    before = model(X)
    adapt(model, ["*"], rank=3, method=method)
    torch.testing.assert_close(model(X), before, atol=1e-6, rtol=1e-5)
    stir(model)
    assert (model(X) - before).abs().max() > 1e-2


def test_the_report_counts_what_matched() -> None:
    model = network()
    report = adapt(model, ["gate_up", "1.ffn.down", "4"], rank=2)
    assert report.matched == {"gate_up": ("1.ffn.gate_up", "3.gate_up"), "1.ffn.down": ("1.ffn.down",), "4": ("4",)}
    gates = 2 * 2 * (WIDTH + HIDDEN) + 2 * 2 * (WIDTH + WIDTH)
    assert report.trained == gates + 2 * (HIDDEN + WIDTH) + 2 * (WIDTH + 3)
    assert report.total == sum(p.numel() for p in model.parameters())
    assert "gate_up matches 2" in str(report) and f"{report.trained:,} of {report.total:,}" in str(report)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained) and len(trained) == 8


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["ffn.dwon"], "'ffn.dwon' matches no linear map"),
        (["down", "q_proj"], "'q_proj' matches no linear map"),
        (["norm"], "1.norm is a LayerNorm"),
        (["gate_up_"], "did you mean 'gate_up'? the linear maps here end in"),
        (["doun"], "down (×2)"),
        ([], "targets is empty"),
    ],
)
def test_a_target_that_matches_nothing_raises(targets: list[str], said: str) -> None:
    model = network()
    with pytest.raises(ConfigError) as caught:
        adapt(model, targets)
    assert said in str(caught.value)
    assert all(p.requires_grad for p in model.parameters()), "the model is as it was"


@pytest.mark.parametrize(
    "settings",
    [{"rank": 0}, {"dropout": 1.0}, {"method": "lorra"}, {"name": "a.b"}],
)
def test_impossible_settings_raise(settings: dict) -> None:
    with pytest.raises(ConfigError):
        adapt(network(), ["down"], **settings)


def test_torch_s_attention_is_left_alone() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    report = adapt(layer, ["*"], rank=2)
    assert report.matched == {"*": ("linear1", "linear2")}  # out_proj is read, never called


def unpacked(layer: GatedFFN) -> nn.ModuleDict:
    gate, up = layer.gate_up.detach().chunk(2)
    gate_bias, up_bias = layer.gate_up_bias.detach().chunk(2)
    parts = {"gate": (gate, gate_bias), "up": (up, up_bias), "down": (layer.down.weight, layer.down.bias)}
    made = nn.ModuleDict({name: nn.Linear(w.shape[1], w.shape[0]) for name, (w, _) in parts.items()})
    for name, (weight, bias) in parts.items():
        made[name].weight, made[name].bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return made


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gate_up_is_adapted_as_two_projections_would_be(method: str) -> None:
    torch.manual_seed(0)
    layer = GatedFFN(WIDTH, HIDDEN, bias=True).double()
    single = unpacked(layer)
    adapt(layer, ["gate_up", "down"], rank=3, method=method)
    adapt(single, ["*"], rank=3, method=method)
    stir(layer)
    state = adapter_state(layer)
    for place, index in (("gate", 0), ("up", 1)):
        for kind, tensor in adapter_state(single).items():
            if kind.startswith(place):
                tensor.copy_(state[f"gate_up.{kind.partition('.')[2]}"].chunk(2)[index])
            if kind.startswith("down"):
                tensor.copy_(state[kind])
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    ours = layer(x)
    expected = single["down"](F.silu(single["gate"](x)) * single["up"](x))
    torch.testing.assert_close(ours, expected)
    ours.square().sum().backward()
    expected.square().sum().backward()
    grads = {path: m.lora_A["default"].grad for path, m in lora_layers(single)}
    torch.testing.assert_close(layer.gate_up.lora_A["default"].grad, torch.cat([grads["gate"], grads["up"]]))
    torch.testing.assert_close(layer.down.lora_A["default"].grad, grads["down"])


@pytest.mark.parametrize("targets", [["up"], ["down"], ["gate_up"], ["gate_up", "down"], ["*"]])
def test_every_part_that_is_adapted_takes_part(targets: list[str]) -> None:
    """A layer's own fast path must not read a weight past its adapter."""
    model = network()
    before = model(X)
    adapt(model, targets, rank=2)
    paths = [path for path, _ in lora_layers(model)]
    for path in paths:
        for name, tensor in adapter_state(model).items():
            if name.startswith(path):
                torch.manual_seed(0)
                tensor.add_(torch.randn_like(tensor))
        after = model(X)
        assert (after - before).abs().max() > 1e-3, path
        before = after
    model(X).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("method", "bias"), [("lora", False), ("lora", True), ("rslora", True), ("dora", False), ("dora", True)]
)
def test_merging_keeps_the_outputs_and_unmerging_the_bits(method: str, bias: bool) -> None:
    model = network()
    adapt(model, ["*"], rank=3, method=method, bias=bias)
    stir(model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted = model(X)
    merge(model)
    torch.testing.assert_close(model(X), adapted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="merged already"):
        merge(model)
    with pytest.raises(ConfigError, match="unmerge it first"):
        activate(model, None)
    unmerge(model)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert torch.equal(model(X), adapted)
    with pytest.raises(ConfigError, match="nothing to unmerge"):
        unmerge(model)


def test_unwrapping_gives_the_model_its_own_layers_again() -> None:
    model, plain = network(), network()
    adapt(model, ["*"], rank=3)
    assert torch.equal(unwrap(copy.deepcopy(model))(X), plain(X))
    stir(model)
    adapted = model(X)
    unwrap(merge(model))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(model(X), adapted, atol=1e-5, rtol=1e-5)


def test_merging_leaves_a_shared_weight_to_its_other_owner() -> None:
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    adapt(model, ["head"], rank=2)
    stir(model)
    before = embedding.weight.detach().clone()
    merge(model)
    assert torch.equal(embedding.weight, before) and not torch.equal(model["head"].base.weight, before)
    unmerge(model)
    assert model["head"].base.weight is embedding.weight


def test_a_layer_used_in_two_places_stays_one() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    adapt(model, ["0"], rank=2)
    assert model[0] is model[2] and isinstance(model[0], LoRALinear)
    unwrap(model)
    assert model[0] is layer and model[2] is layer


def test_adapters_by_name() -> None:
    model = network()
    outputs = {None: model(X)}
    for seed, (name, targets) in enumerate({"first": ["*"], "second": ["down"]}.items()):
        adapt(model, targets, rank=2, name=name)
        stir(model, name, seed)
        outputs[name] = model(X)
    for name in ("first", None, "second", "first"):
        activate(model, name)
        torch.testing.assert_close(model(X), outputs[name])
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert all(n.endswith(f".{name}") for n in trained) and bool(trained) == (name is not None)
    with pytest.raises(ConfigError, match="did you mean 'second'"):
        activate(model, "secnd")
    with pytest.raises(ConfigError, match="already"):
        adapt(model, ["down"], name="first")


def test_a_second_call_of_the_same_name_gives_other_maps_another_rank() -> None:
    model = network()
    adapt(model, ["gate_up"], rank=2)
    report = adapt(model, ["down"], rank=5)
    ranks = {path: layer.adapters["default"].rank for path, layer in lora_layers(model)}
    assert ranks == {"1.ffn.gate_up": 2, "1.ffn.down": 5, "2.ffn.down": 5, "3.gate_up": 2}
    assert report.trained == sum(t.numel() for t in adapter_state(model).values())


def test_the_state_holds_the_adapter_alone() -> None:
    model, other = network(), network()
    adapt(model, ["gate_up", "4"], rank=2, method="dora", name="mine")
    stir(model, "mine")
    state = adapter_state(model, "mine")
    assert set(state) == {f"{p}.lora_{k}" for p in ("1.ffn.gate_up", "3.gate_up", "4") for k in ("A", "B", "magnitude")}
    adapt(other, ["gate_up", "4"], rank=2, method="dora")
    load_adapter_state(other, state)
    assert torch.equal(other(X), model(X))
    with pytest.raises(ConfigError, match="don't fit"):
        load_adapter_state(other, {key: tensor for key, tensor in state.items() if "4" not in key})
    with pytest.raises(ConfigError, match="no adapter 'default'"):
        adapter_state(model)


def test_training_moves_the_adapter_only_and_dropout_only_while_training() -> None:
    model = network()
    adapt(model, ["*"], rank=4, dropout=0.3, bias=True)
    stir(model)
    assert torch.equal(model(X), model(X)), "a model that doesn't train has adapters that don't"
    model.train()
    assert not torch.equal(model(X), model(X))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    target = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_a_half_precision_base_gets_adapters_in_fp32() -> None:
    model = network().bfloat16()
    adapt(model, ["*"], rank=2, method="dora")
    assert {t.dtype for t in adapter_state(model).values()} == {torch.float32}
    before = model(X.bfloat16())
    stir(model)
    y = model(X.bfloat16())
    assert y.dtype == torch.bfloat16 and not torch.equal(y, before)
    y.float().sum().backward()
    merge(model)
    torch.testing.assert_close(model(X.bfloat16()), y, atol=0.1, rtol=0.1)
    assert {p.dtype for n, p in model.named_parameters() if ".base." in n} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_whole_models_compile(method: str) -> None:
    model = network()
    adapt(model, ["*"], rank=2, method=method)
    stir(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), model(X))


def test_what_reads_a_weight_past_the_adapter_fails_loudly() -> None:
    layer = LoRALinear(nn.Linear(3, 3))
    with pytest.raises(AttributeError):
        _ = layer.weight


def test_a_layer_says_which_path_it_takes() -> None:
    layer = LoRALinear(nn.Linear(3, 3))
    assert "no adapter" in layer.explain()
    layer.add("default", Adapter(rank=2, alpha=2, dropout=0.5))
    layer.activate("default")
    assert layer.explain().startswith("low rank")
    layer.base.weight.requires_grad_()
    assert layer.explain() == "plain: the base weight is being trained too"
