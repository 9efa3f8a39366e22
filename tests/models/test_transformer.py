import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from feedfwd.data.batches import Batch
from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn import FFNSpec
from feedfwd.ffn.lora import Adapter, add_adapters
from feedfwd.models import norms_native
from feedfwd.models.attention import Sight, formula
from feedfwd.models.norms import RMSNorm
from feedfwd.models.positions import rotate, rotate_plain, tables
from feedfwd.models.sizes import SIZES
from feedfwd.models.transformer import Transformer
from feedfwd.train.cross_entropy import Gradients, linear_cross_entropy, plain, token_losses
from feedfwd.train.loop import autograd
from feedfwd.train.losses import cross_entropy
from feedfwd.train.optimizers import hidden_matrices

SETTINGS: list[dict[str, Any]] = [
    {},
    {"kv_heads": 2, "qk_norm": True, "bias": "qkv", "tied": False},
    {"norm_kind": "layer", "norm_place": "post", "positions": "learned", "bias": "all", "causal": False},
    {"window": 5, "head_width": 6, "rope_scaling": {"kind": "linear", "factor": 2.0}},
    {"positions": "none", "ffn": FFNSpec(kind="stranger:Maxout", options={"pieces": 3})},
    {"end": 7, "ffn": FFNSpec(activation="relu2")},
    {"dropout": 0.1, "recompute": True},
]


@pytest.fixture(autouse=True)
def _strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("tests")


def made(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "hidden": 48, "context": 16}
    return Transformer(50, **(sizes | settings))


def test_it_is_its_formula() -> None:
    model = made(kv_heads=2, norm_eps=1e-5)
    ids = torch.randint(0, 50, (3, 11))
    x = F.embedding(ids, model.embedding.weight)
    cos, sin = tables(torch.arange(11), 8, 10_000.0)
    for block in model.each_block():
        part = block.attention
        h = F.rms_norm(x, (32,), block.attention_norm.weight, 1e-5)
        q, k, v = ((h @ m.weight.T).view(3, 11, -1, 8) for m in (part.q, part.k, part.v))
        y = formula(rotate_plain(q, cos, sin), rotate_plain(k, cos, sin), v.transpose(1, 2), Sight())
        x = x + y.transpose(1, 2).flatten(2) @ part.out.weight.T
        h = F.rms_norm(x, (32,), block.ffn_norm.weight, 1e-5)
        gate, up = (h @ block.ffn.gate_up.T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ block.ffn.down.weight.T
    wanted = F.rms_norm(x, (32,), model.norm.weight, 1e-5) @ model.embedding.weight.T
    torch.testing.assert_close(model(ids), wanted, atol=1e-5, rtol=1e-4)
    assert model(ids).shape == (3, 11, 50)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting_trains(settings: dict[str, Any]) -> None:
    model = made(**settings)
    ids = torch.arange(12).repeat(4, 1)
    targets = ids.roll(-1, 1) if model.causal else ids
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert loss < 1.5  # 3.9 at the start


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.get("causal", True)])
def test_no_token_sees_the_future(settings: dict[str, Any]) -> None:
    model = made(**settings).eval()
    ids = torch.randint(8, 50, (1, 12))
    changed = ids.clone()
    changed[0, 8] = 3
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8], after[:, 8])


def test_documents_are_worlds_of_their_own() -> None:
    model = made(end=7).eval()
    first, second = [7, 1, 2, 3], [7, 4, 5, 6, 8]  # as packed rows have them: the first word is predicted from the end
    whole = model(torch.tensor([first + second]))
    torch.testing.assert_close(whole[:, :4], model(torch.tensor([first])), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole[:, 4:], model(torch.tensor([second])), atol=1e-5, rtol=1e-4)  # rope is relative
    numbered = made().eval()(torch.tensor([first + second]), torch.tensor([[0] * 4 + [1] * 5]))
    torch.testing.assert_close(numbered, whole)


def test_recomputing_changes_nothing_but_memory() -> None:
    model = made(dropout=0.2)
    ids = torch.randint(0, 50, (2, 9))
    gradients = []
    for recompute in (False, True):
        model.recompute = recompute
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(model(ids).logsumexp(-1).sum(), list(model.parameters())))
    torch.testing.assert_close(*gradients)


def test_weights_survive_saving_and_tied_ones_are_saved_once() -> None:
    model = made()
    state = model.state_dict()
    assert "head.weight" not in state and model.head_weight is model.embedding.weight
    other = Transformer(50, width=32, depth=2, heads=4, hidden=48)
    other.load_state_dict(state)
    ids = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(other(ids), model(ids))
    copied = copy.deepcopy(model)
    assert copied.head_weight is copied.embedding.weight
    matrices = hidden_matrices(model)
    assert not any("embedding" in name or "head" in name for name in matrices)
    assert len(matrices) == 2 * 6 and matrices["blocks.0.ffn.gate_up"] == 2


def test_adapters_replace_a_map() -> None:
    model = made().eval()
    ids = torch.randint(0, 50, (2, 9))
    before = model(ids)
    add_adapters(model, "a", {"blocks.0.attention.q": Adapter(2, 4.0), "blocks.1.attention.v": Adapter(2, 4.0)})
    torch.testing.assert_close(model(ids), before)  # an adapter starts at nothing
    model(ids).sum().backward()
    assert model.get_submodule("blocks.1.attention.v").lora_B["a"].grad.abs().sum() > 0


def test_the_start_is_nearly_even_and_does_not_grow_with_depth() -> None:
    ids = torch.randint(0, 50, (4, 16))
    for depth in (2, 24):
        torch.manual_seed(0)
        logits = Transformer(50, width=64, depth=depth, heads=4, hidden=128)(ids)
        assert abs(logits.logsumexp(-1).mean().item() - math.log(50)) < 0.1
    model = Transformer(50, width=64, depth=24, heads=4, hidden=128)
    assert float(model.blocks[0].attention.out.weight.std() * (64 * 48) ** 0.5) == pytest.approx(1, abs=0.1)
    assert float(model.blocks[0].ffn.down.weight.std() * (128 * 48) ** 0.5) == pytest.approx(1, abs=0.1)


def test_costs() -> None:
    size = SIZES["small"]
    model = Transformer(8192, width=size.width, depth=size.depth, heads=size.heads, hidden=size.hidden)
    assert model.parameter_count == size.parameters(8192) == 17_308_032
    assert [s.parameters(8192) for s in SIZES.values()] == sorted(s.parameters(8192) for s in SIZES.values())
    small = made(causal=False, positions="none", qk_norm=True)  # attention's products lie in an operation of its own
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(torch.zeros(1, 16, dtype=torch.long))
    assert counter.get_total_flops() + 16 * 2 * 4 * 32 * 16 == 16 * small.flops(16)
    assert small.flops(32) - small.flops(16) == 2 * 4 * 32 * 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "model.width=32 is not divisible by model.heads=5: try model.width=30 or 35"),
        ({"kv_heads": 3}, "model.kv_heads=3 does not divide model.heads=4"),
        ({"head_width": 7}, "model.head_width=7 is odd"),
        ({"positions": "rop"}, "did you mean 'rope'"),
        ({"bias": "some"}, "model.bias='some'"),
        ({"norm_kind": "batch"}, "model.norm='batch'"),
        ({"window": 0}, "model.window=0"),
        ({"depth": 0}, "model.depth=0"),
        ({"positions": "learned", "rope_scaling": {"kind": "linear", "factor": 2}}, "model.rope_scaling is not for"),
        ({"rope_scaling": {"kind": "yern"}}, "did you mean 'yarn'"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2}}, "lacks the length"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        made(**settings)(torch.zeros(1, 2, dtype=torch.long))
    assert message in str(raised.value)


def test_bad_ids_are_named() -> None:
    with pytest.raises(DataError, match="token ids"):
        made()(torch.zeros(2, 3))
    with pytest.raises(DataError, match="17 tokens is longer than the 16"):
        made(positions="learned")(torch.zeros(1, 17, dtype=torch.long))
    assert made()(torch.zeros(1, 17, dtype=torch.long)).shape == (1, 17, 50)  # rotary positions go on


@pytest.mark.parametrize("in_c", [True, False])
def test_fast_rms_norm_is_torchs(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.setattr(norms_native, "lacks", lambda *_: "no compiler")
    layer = RMSNorm(24, eps=1e-3)
    layer.weight.data.uniform_(0.5, 2)
    x, dy = torch.randn(5, 7, 24, requires_grad=True), torch.randn(5, 7, 24)
    wanted = F.rms_norm(x, (24,), layer.weight, 1e-3)
    torch.testing.assert_close(layer(x), wanted)
    inputs = [x, layer.weight]
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), inputs, dy), torch.autograd.grad(wanted, inputs, dy), atol=1e-5, rtol=1e-4
    )


def test_rotation_is_its_formula_and_relative() -> None:
    x, dy = torch.randn(2, 9, 3, 8, requires_grad=True), torch.randn(2, 3, 9, 8)
    cos, sin = tables(torch.arange(9), 8, 100.0)
    fast, slow = rotate(x, cos, sin), rotate_plain(x, cos, sin)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, x, dy), torch.autograd.grad(slow, x, dy))
    q = rotate(torch.randn(1, 1, 1, 8).expand(1, 9, 1, 8), cos, sin)[0, 0]
    products = q @ q.T
    torch.testing.assert_close(products[0, 3], products[5, 8])


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_chunked_cross_entropy_is_its_formula(z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedfwd.train.cross_entropy.LOGITS", 7 * 30)  # seven tokens at a time
    h, w = torch.randn(40, 12, requires_grad=True), torch.randn(30, 12, requires_grad=True)
    targets, shares = torch.randint(0, 30, (40,)), torch.rand(40) / 40
    shares[::5] = 0
    wanted, found = (f(h, w, targets, shares, z_loss) for f in (plain, linear_cross_entropy))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(2 * found, (h, w)), torch.autograd.grad(2 * wanted, (h, w)))
    torch.testing.assert_close((token_losses(h, w, targets) * shares).sum(), plain(h, w, targets, shares))
    halves = [x.detach().bfloat16().requires_grad_() for x in (h, w)]
    low = linear_cross_entropy(*halves, targets, shares, z_loss)
    assert float(low) == pytest.approx(float(wanted), rel=0.01)
    for ours, theirs in zip(
        torch.autograd.grad(low, halves), torch.autograd.grad(plain(h, w, targets, shares, z_loss), (h, w)), strict=True
    ):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_what_was_evaluated_can_be_trained() -> None:
    model, ids = made(), torch.randint(0, 50, (2, 16))
    with torch.inference_mode():
        model(ids)
    model(ids).sum().backward()
    assert model.embedding.weight.grad is not None


def test_a_hopeless_token_has_a_finite_loss() -> None:
    h, w = torch.ones(2, 1), torch.tensor([[300.0], [0.0]])
    loss = linear_cross_entropy(h, w, torch.tensor([1, 0]), torch.ones(2))
    assert float(loss) == pytest.approx(300.0)


@pytest.mark.parametrize("weighing", ["none", "all", "few", "nothing"])
def test_the_loops_gradients_are_the_plain_ones(weighing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where few tokens count, of which alone logits are taken."""
    seen: list[int] = []
    real = linear_cross_entropy
    monkeypatch.setattr(
        "feedfwd.train.cross_entropy.linear_cross_entropy", lambda h, *rest: seen.append(len(h)) or real(h, *rest)
    )
    model, ids = made(), torch.randint(0, 50, (3, 10))
    weights = torch.rand(3, 9) + 0.1
    if weighing in ("few", "nothing"):
        weights *= torch.arange(27).view(3, 9) % 7 == 0
    batch = Batch(ids[:, :-1], ids[:, 1:], None if weighing == "none" else weights * (weighing != "nothing"))
    total = 3 if batch.weights is None else weights.sum()
    found = []
    for way in (autograd, Gradients()):
        model.zero_grad()
        share = way(model, batch, cross_entropy, total)
        found.append([share, *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert seen == [{"few": 4, "nothing": 0}.get(weighing, 27)]


def test_a_user_sees_an_ordinary_module() -> None:
    model = made()
    assert isinstance(model.blocks, nn.ModuleList) and len(model.blocks) == 2
    assert model.double()(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.float64
