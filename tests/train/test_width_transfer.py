"""ffn.init=mup: what an update changes is the same at every width, and at the base width nothing differs."""

import math
from statistics import mean

import pytest
import torch
from torch import Tensor, nn

from feedfwd.errors import ConfigError
from feedfwd.ffn.init import Growth
from feedfwd.ffn.spec import FFNSpec
from feedfwd.models.mlp import MLP
from feedfwd.models.transformer import Transformer
from feedfwd.train.muon import spectral_multiplier
from feedfwd.train.optimizers import OPTIMIZERS, build_optimizer, multiplier

BASE = 32
RATE = {"sgd": 0.05, "momentum": 0.02, "nesterov": 0.02, "adagrad": 0.01}


def mlp(width: int, init: str, **how: object) -> MLP:
    return MLP([20, width, width, 5], init=init, base_width=BASE, **how)  # type: ignore[arg-type]


def transformer(width: int, init: str, **how: object) -> Transformer:
    ffn = FFNSpec(activation="swiglu", bias=False, init=init)
    sizes = {"width": width, "heads": width // 16, "hidden": 2 * width, "depth": 2}
    return Transformer(30, **sizes, ffn=ffn, base_width=BASE, **how)  # type: ignore[arg-type]


def data(model: nn.Module) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    if isinstance(model, MLP):
        return torch.randn(64, 20, generator=generator), torch.randint(5, (64,), generator=generator)
    return torch.randint(30, (8, 12), generator=generator), torch.randint(30, (96,), generator=generator)


def seen(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """What each block gives, and the logits."""
    found: list[Tensor] = []
    parts = [*model.blocks, model.head]  # type: ignore[misc]
    hooks = [part.register_forward_hook(lambda _m, _x, y: found.append(y.detach().clone())) for part in parts]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return found


def updated(model: nn.Module, optimizer: str, updates: int, weight_decay: float = 0.0) -> nn.Module:
    inputs, targets = data(model)
    rule = build_optimizer(
        model,
        optimizer,
        RATE.get(optimizer, 0.003),
        weight_decay=weight_decay,
        growth=model.growth,  # type: ignore[arg-type]
    )
    for _ in range(updates):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets).backward()
        rule.step()
    return model


def changes(make: object, width: int, init: str, optimizer: str) -> list[float]:
    """Root mean square of what three updates change in each block's output and in the logits, over four seeds."""
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = make(width, init)  # type: ignore[operator]
        inputs, _ = data(model)
        before = seen(model, inputs)
        after = seen(updated(model, optimizer, 3), inputs)
        found.append([(a - b).square().mean().sqrt().item() for a, b in zip(after, before, strict=True)])
    return [mean(values) for values in zip(*found, strict=True)]


def slopes(make: object, init: str, optimizer: str) -> list[float]:
    """The power of the width with which the changes grow, from one base width to eight."""
    narrow, wide = (changes(make, width, init, optimizer) for width in (BASE, 8 * BASE))
    return [math.log(b / a) / math.log(8) for a, b in zip(narrow, wide, strict=True)]


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_what_updates_change_does_not_depend_on_the_width(make: object, optimizer: str) -> None:
    """The coordinate check of the paper's appendix D.1. The logits of narrow networks still feel their random start."""
    *blocks, logits = slopes(make, "mup", optimizer)
    assert max(map(abs, blocks)) < 0.2 and abs(logits) < 0.35, (blocks, logits)
    *_, logits = slopes(make, "auto", optimizer)
    assert logits > 0.45, "under the standard start a wide network's output changes more"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [mlp, transformer])
def test_at_the_base_width_mup_is_auto(make: object, optimizer: str) -> None:
    ends = []
    for init in ("auto", "mup"):
        torch.manual_seed(0)
        ends.append(updated(make(BASE, init), optimizer, 2, weight_decay=0.1))  # type: ignore[operator]
    for (name, p), q in zip(ends[0].named_parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_multipliers_by_parameter() -> None:
    """Table 3 of the paper, with a width of 4 times the base."""
    model, wide, wider = mlp(4 * BASE, "mup"), "blocks.1.linear.weight", "blocks.0.linear.weight"
    assert set(model.growth) == {name for name, _ in model.named_parameters()}
    expected = {  # Adam, SGD
        wider: (1.0, 4.0),
        "blocks.0.linear.bias": (1.0, 4.0),
        wide: (0.25, 1.0),
        "blocks.1.linear.bias": (1.0, 4.0),
        "head.weight": (0.25, 0.25),
        "head.bias": (1.0, 1.0),
    }
    for name, (adam, sgd) in expected.items():
        for optimizer, rate in (("adam", adam), ("adamw", adam), ("rmsprop", adam), ("adagrad", adam), ("sgd", sgd)):
            assert multiplier(optimizer, model.growth[name]) == rate, (optimizer, name)
            groups = build_optimizer(model, optimizer, 0.5, growth=model.growth).param_groups
            (found,) = [g for g in groups if any(p is model.get_parameter(name) for p in g["params"])]
            assert found["lr"] == found["initial_lr"] == 0.5 * rate and groups[0]["lr"] == 0.5
    standard = mlp(4 * BASE, "auto")
    ratios = [model.get_parameter(n).std().item() / standard.get_parameter(n).std().item() for n in (wider, wide)]
    assert ratios == pytest.approx([1, 1], abs=0.05), "only the head starts smaller"
    assert model.head.weight.std().item() == pytest.approx(standard.head.weight.std().item() / 2, rel=0.15)


def test_the_parameters_of_a_residual_gated_network_and_of_a_transformer() -> None:
    model = MLP([20, 64, 128, 5], "swiglu", residual=True, init="mup", base_width=BASE)
    grown = model.growth
    assert set(grown) == {name for name, _ in model.named_parameters()}
    assert grown["stem.weight"] == (1, 2) and grown["blocks.1.resize.weight"] == (2, 4)
    assert grown["blocks.1.ffn.gate_up"] == (4, 4) and grown["norm.weight"] == (1, 4) and grown["head.weight"] == (4, 1)
    for place, last in (("pre", "norm"), ("post", "blocks.1.ffn_norm")):
        for tied in (True, False):
            model = transformer(4 * BASE, "mup", norm_place=place, tied=tied, qk_norm=True, norm_kind="layer")
            grown = model.growth
            assert set(grown) == {name for name, _ in model.named_parameters()}
            assert grown["embedding.weight"] == (1, 4) and grown["blocks.0.attention.q_norm.weight"] == (1, 1)
            assert grown["blocks.1.ffn.gate_up"] == (4, 4) and grown["blocks.0.attention.out.weight"] == (4, 4)
            assert grown[f"{last}.weight"] == grown[f"{last}.bias"] == (4, 1)
            assert model.get_parameter(f"{last}.weight").eq(0.25).all()
            assert tied or grown["head.weight"] == (1, 4)


def test_muon_keeps_the_change_of_each_matrix() -> None:
    """Its step's largest singular value over √(rows / columns) is the same at the base width and beyond."""

    def sizes(width: int) -> list[float]:
        torch.manual_seed(0)
        model = transformer(width, "mup")
        muon = build_optimizer(model, "muon", 1.0, growth=model.growth)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        muon.step()
        names = ("blocks.0.attention.q.weight", "blocks.0.ffn.gate_up", "blocks.0.ffn.down.weight")
        steps = [m for n in names for m in (model.get_parameter(n) - before[n]).chunk(2 if "gate_up" in n else 1)]
        return [torch.linalg.matrix_norm(m, 2).item() / (m.shape[0] / m.shape[1]) ** 0.5 for m in steps]

    assert sizes(8 * BASE) == pytest.approx(sizes(BASE), rel=0.15)
    assert spectral_multiplier((64, 784), Growth(1.0, 2.0)) == pytest.approx(2**0.5), "pixels don't grow"


@pytest.mark.parametrize(("optimizer", "kept"), [("adamw", True), ("sgd", True), ("muon", True), ("adam", False)])
def test_an_update_takes_off_the_same_share_at_every_width(optimizer: str, kept: bool) -> None:
    model = mlp(4 * BASE, "mup")
    for group in build_optimizer(model, optimizer, 0.5, weight_decay=0.1, growth=model.growth).param_groups:
        decays = any(p.ndim > 1 for p in group["params"])
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.05 * decays) or not kept
        assert kept or group["weight_decay"] == 0.1 * decays


@pytest.mark.parametrize("build", [MLP, Transformer])
def test_a_layer_of_ones_own_is_refused(build: object) -> None:
    with pytest.raises(ConfigError, match="mup does not know how the matrices of"):
        if build is MLP:
            MLP([4, 8, 3], kind="stranger:Bottleneck", init="mup")
        else:
            Transformer(30, width=32, heads=2, ffn=FFNSpec(kind="stranger:Bottleneck", init="mup"))


def test_a_base_width_must_be_a_width() -> None:
    with pytest.raises(ConfigError, match="base_width=0"):
        MLP([4, 8, 3], init="mup", base_width=0)
    with pytest.raises(ConfigError, match="base_width=0"):
        Transformer(30, ffn=FFNSpec(init="mup"), base_width=0)
