"""Optimizers: what decays, what Muon takes, packed matrices, exact state, and settings that can't be."""

import contextlib
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from feedfwd.errors import ConfigError
from feedfwd.ffn import plain
from feedfwd.ffn.init import Growth
from feedfwd.train import muon, muon_native
from feedfwd.train.muon import orthogonalized
from feedfwd.train.optimizers import OPTIMIZERS, build_optimizer, hidden_matrices


class Gated(nn.Module):
    packed = {"gate_up": 2}  # noqa: RUF012

    def __init__(self, width: int = 6, hidden: int = 10) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(2 * hidden, width) / width**0.5)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (x @ self.gate_up.T).chunk(2, -1)
        return self.down(torch.relu(gate) * up)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), Gated(), nn.LayerNorm(6), nn.Linear(6, 3))


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lowers_a_loss(name: str) -> None:
    model = network()
    x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
    optimizer = build_optimizer(model, name, lr=0.01)
    losses = []
    for _ in range(60):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_takes_matrices_only(name: str) -> None:
    model, plain = network(), network()
    optimizers = build_optimizer(model, name, lr=0.01, weight_decay=0.5), build_optimizer(plain, name, lr=0.01)
    for n in range(2):
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            fill_gradients(m, seed=n)
            optimizer.step()
    for (key, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q) == (p.ndim < 2), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_dict_continues_exactly(name: str) -> None:
    def go(model: nn.Module, optimizer: object, seeds: range) -> None:
        for seed in seeds:
            fill_gradients(model, seed)
            optimizer.step()  # type: ignore[attr-defined]

    model, copy = network(), network(seed=1)
    optimizer = build_optimizer(model, name, lr=0.01, weight_decay=0.1)
    go(model, optimizer, range(3))
    copy.load_state_dict(model.state_dict())
    fresh = build_optimizer(copy, name, lr=0.5, weight_decay=0.3)
    fresh.load_state_dict(deepcopy(optimizer.state_dict()))  # torch takes over the tensors it is given
    go(model, optimizer, range(3, 6))
    go(copy, fresh, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), copy.parameters(), strict=True))


def test_muon_takes_hidden_matrices() -> None:
    assert hidden_matrices(network()) == {"0.weight": 1, "1.gate_up": 2, "1.down.weight": 1}


def test_muon_leaves_embeddings_and_a_tied_output_to_adamw() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 9))
    model[3].weight = model[0].weight
    assert list(hidden_matrices(model)) == ["1.weight", "2.weight"]


@pytest.mark.parametrize("native", [True, False])
def test_muon_is_torchs_on_the_parts_of_a_packed_parameter(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "lacks_bf16", lambda kind: "" if native else "no bf16 products")
    monkeypatch.setattr(muon, "QUINTICS", 5 * [(3.4445, -4.7750, 2.0315)])  # torch's
    model = network()
    ours = build_optimizer(model, "muon", lr=0.1, weight_decay=0.2)
    packed = model[1].gate_up
    alone = [nn.Parameter(part.clone()) for part in packed.detach().chunk(2)]
    theirs = torch.optim.Muon(alone, lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        fill_gradients(model, seed)
        packed.grad[:10] *= 1e-3  # taken together, the small gate would hardly move
        for part, gradient in zip(alone, packed.grad.chunk(2), strict=True):
            part.grad = gradient
        before = packed.detach().clone()
        with plain():
            ours.step()
        theirs.step()
        if native:
            assert torch.equal(packed, torch.cat(alone))
        else:  # theirs rounds to 8 bits
            torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=0.1 * 0.2 * 0.1)
        for part, was in zip(packed.chunk(2), before.chunk(2), strict=True):
            size = (part - was * (1 - 0.1 * 0.2)).square().mean().sqrt() / 0.1
            assert 0.1 < size < 0.3, "an update has AdamW's size"


@pytest.mark.parametrize("shape", [(40, 40), (64, 24), (24, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muons_directions_have_singular_values_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = torch.randn(5, *shape)
    stack[0] = torch.outer(torch.ones(shape[0]), torch.ones(shape[1]))  # one singular value: the largest there can be
    found = orthogonalized(stack.to(dtype)).float()
    for one, matrix in zip(found, stack, strict=True):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        keep = s / matrix.norm() > 0.003
        values = torch.einsum("ri,rc,ic->i", u, one, v)[keep]
        assert ((values > 0.75) & (values < 1.25)).all()
        torch.testing.assert_close(orthogonalized(matrix.to(dtype)).float(), one, rtol=0, atol=2e-2)


@pytest.mark.parametrize("evened", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_in_c_does_what_torchs_operations_do(
    dtype: torch.dtype, evened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(64, 64), (130, 65), (65, 130), (7, 5), (1, 40), (200, 33), (33, 200), (96, 32)]
    counts = dict.fromkeys(map(str, range(len(shapes))), 1) | {"7": 3}
    compiled = muon_native.lacks(muon_native.Job(*(torch.zeros(4, 4) for _ in range(3)), 1), dtype)
    if compiled:
        pytest.skip(compiled)
    monkeypatch.setattr(muon, "lacks_bf16", lambda kind: "" if dtype == torch.bfloat16 else "no bf16 products")

    taken: list[int] = []
    update = muon_native.update
    monkeypatch.setattr(muon_native, "update", lambda jobs, *more: (taken.append(len(jobs)), update(jobs, *more)))

    def trained(threads: int, by_torch: bool = False) -> list[Tensor]:
        torch.manual_seed(0)
        named = [(str(i), nn.Parameter(torch.randn(shape))) for i, shape in enumerate(shapes)]
        growth = {"0": Growth(4.0, 4.0)}
        optimizer = muon.Muon(named, counts, 0.1, weight_decay=0.2, momentum=0.9, growth=growth, evened=evened)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with plain() if by_torch else contextlib.nullcontext():
            for _ in range(3):
                for _, parameter in named:
                    parameter.grad = torch.randn_like(parameter)
                optimizer.step()
        torch.set_num_threads(before)
        return [parameter.detach() for _, parameter in named]

    monkeypatch.setattr(muon_native, "ALONE", 1)
    for one, two, theirs in zip(trained(1), trained(2), trained(2, by_torch=True), strict=True):
        assert torch.equal(one, two)
        moved = 3 * 0.1 * 0.2 * max(one.shape) ** 0.5  # at most, by any singular vector
        off = torch.linalg.matrix_norm(one - theirs, 2) / moved
        assert off < (0.2 if dtype == torch.bfloat16 else 1e-4), "the first quintic makes a seventh of bf16's rounding"
    assert taken == 6 * [len(shapes)], "three updates each by one and by two threads, and none by torch"


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_normuon_evens_rows_out_and_keeps_the_size(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    direction = torch.randn(shape) * torch.linspace(0.2, 3.0, shape[0])[:, None] * torch.linspace(0.2, 3.0, shape[1])
    moment = torch.zeros(1, max(shape))
    found = muon.evened(direction[None], [moment])[0]
    across = 1 if shape[0] >= shape[1] else 0  # of the first update, when the moving mean is its own
    sizes = found.square().mean(across).sqrt()
    torch.testing.assert_close(sizes, sizes.mean().expand_as(sizes))
    torch.testing.assert_close(found.norm(), direction.norm())
    torch.testing.assert_close(moment[0], 0.1 * direction.square().mean(across))


def test_muon_in_c_says_what_it_does_not_serve() -> None:
    def reason(shape: tuple[int, int], turned: bool = False) -> str:
        tensors = [torch.zeros(shape).t() if turned else torch.zeros(shape) for _ in range(3)]
        return muon_native.lacks(muon_native.Job(*tensors, 1), torch.float32) or ""

    assert "row by row" in reason((4, 5), turned=True)
    assert "1,024 wide" in reason((1025, 1025))
    with plain():
        assert "plain" in reason((4, 4))


def test_muon_follows_rates_set_outside() -> None:
    model = network()
    muon = build_optimizer(model, "muon", lr=0.1, weight_decay=0.1)
    for group in muon.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    fill_gradients(model, seed=0)
    muon.step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    for name in ("adam", "muon", "normuon"):
        held = [p for g in build_optimizer(model, name, 0.1).param_groups for p in g["params"]]
        assert not any(p is q for p in held for q in model[0].parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamm", {}, "did you mean"),
        ("adam", {"lr": float("nan")}, "optimizer.lr=nan"),
        ("adam", {"lr": 0.0}, "optimizer.lr=0.0"),
        ("adam", {"weight_decay": -1.0}, "weight_decay=-1.0"),
        ("momentum", {"momentum": 1.0}, "momentum=1.0"),
        ("adam", {"beta2": 1.5}, "beta2=1.5"),
    ],
)
def test_bad_settings(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(network(), name, **{"lr": 0.1, **options})


def test_models_that_cant_be_trained() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(nn.ReLU(), "adam", 0.1)
    with pytest.raises(ConfigError, match="muon needs a hidden matrix"):
        build_optimizer(nn.Linear(3, 2), "muon", 0.1)
