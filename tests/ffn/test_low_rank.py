"""The low-rank product: its numbers beside the plain formula in fp64, what it keeps, and where it may be used."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from feedfwd.ffn import low_rank, products
from feedfwd.ffn.low_rank import keep_mask, low_rank_linear, plain

N, D, H, R = 24, 20, 12, 4
SCALE = 1.5


def tensors(dtype: torch.dtype = torch.float64, groups: int = 1, bias: bool = True, gain: bool = False) -> dict:
    torch.manual_seed(0)
    made = {
        "x": torch.randn(2, N // 2, D, dtype=dtype),
        "weight": torch.randn(H, D, dtype=dtype),
        "bias": torch.randn(H, dtype=dtype) if bias else None,
        "a": torch.randn(groups * R, D, dtype=dtype),
        "b": torch.randn(H, R, dtype=dtype),
        "gain": 1 + 0.1 * torch.randn(H, dtype=dtype) if gain else None,
    }
    for name, tensor in made.items():
        if tensor is not None and name != "weight":
            tensor.requires_grad_()
    return made


def formula(t: dict, mask: Tensor | None, keep: float, groups: int) -> Tensor:
    seen = t["x"] if mask is None else t["x"] * mask / keep
    a, b, w = t["a"].chunk(groups), t["b"].chunk(groups), t["weight"].chunk(groups)
    parts = zip(w, a, b, strict=True)
    y = torch.cat([F.linear(t["x"], w_g) + SCALE * (seen @ a_g.T) @ b_g.T for w_g, a_g, b_g in parts], -1)
    if t["gain"] is not None:
        y = y * t["gain"]
    return y if t["bias"] is None else y + t["bias"]


def gradients(y: Tensor, t: dict) -> dict[str, Tensor]:
    leaves = {name: tensor for name, tensor in t.items() if tensor is not None and tensor.requires_grad}
    direction = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    return dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), direction), strict=True))


@pytest.mark.parametrize(
    ("groups", "bias", "gain", "dropout"), list(itertools.product([1, 2], [True, False], [True, False], [0.0, 0.3]))
)
def test_value_and_gradients_are_the_formula_s(groups: int, bias: bool, gain: bool, dropout: float) -> None:
    t = tensors(groups=groups, bias=bias, gain=gain)
    torch.manual_seed(3)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    keep = round((1 - dropout) * low_rank.STEPS) / low_rank.STEPS
    mask = keep_mask(t["x"].detach(), keep, seed) if dropout else None
    expected = formula(t, mask, keep, groups)
    torch.manual_seed(3)
    y = low_rank_linear(
        t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE, dropout=dropout, gain=t["gain"], groups=groups
    )
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, t), gradients(expected, t))
    if not dropout:
        twin = plain(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE, gain=t["gain"], groups=groups)
        torch.testing.assert_close(y, twin)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    d=st.integers(1, 17),
    rows=st.integers(1, 9),
    r=st.integers(1, 5),
    groups=st.integers(1, 2),
    bias=st.booleans(),
)
def test_any_shape(n: int, d: int, rows: int, r: int, groups: int, bias: bool) -> None:
    random = torch.Generator().manual_seed(n + 10 * d)
    shapes = {"x": (n, d), "weight": (groups * rows, d), "a": (groups * r, d), "b": (groups * rows, r)}
    t: dict = {k: torch.randn(shape, dtype=torch.float64, generator=random) for k, shape in shapes.items()}
    t |= {"bias": torch.ones(groups * rows, dtype=torch.float64) if bias else None, "gain": None}
    for name in ("x", "a", "b"):
        t[name].requires_grad_()
    y = low_rank_linear(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE, groups=groups)
    expected = formula(t, None, 1, groups)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, t), gradients(expected, t))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1.5), (torch.bfloat16, 1.1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_rounding_is_no_worse_than_eager_s(dtype: torch.dtype, bound: float, groups: int) -> None:
    """Root mean square error against fp64, beside that of the plain formula in the same type."""
    torch.manual_seed(1)
    n, d, h, r = 256, 192, 256, 8
    exact = {
        "x": torch.randn(n, d),
        "weight": torch.randn(h, d) / d**0.5,
        "bias": torch.randn(h),
        "a": torch.randn(groups * r, d) / d**0.5,
        "b": torch.randn(h, r) / r**0.5,
        "gain": 1 + 0.1 * torch.randn(h),
    }
    errors: dict[str, list[dict[str, float]]] = {}
    rounded = {name: tensor.to(dtype) for name, tensor in exact.items()}

    def run(product: object, kind: torch.dtype) -> dict[str, Tensor]:
        t = {name: tensor.to(kind) for name, tensor in rounded.items()}
        for name in t.keys() - {"weight"}:
            t[name].requires_grad_()
        y = product(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE, gain=t["gain"], groups=groups)
        return {"y": y.detach()} | gradients(y, t)

    truth = run(plain, torch.float64)
    errors = {
        which: {k: (v.double() - truth[k]).square().mean().sqrt() for k, v in run(product, dtype).items()}
        for which, product in (("ours", low_rank_linear), ("eager", plain))
    }
    for name, eager in errors["eager"].items():
        assert errors["ours"][name] <= bound * eager + 1e-9, (name, errors["ours"][name], eager)


@pytest.mark.parametrize("n", [0, 1])
def test_no_token_and_one_token(n: int) -> None:
    t = tensors(gain=True)
    x = t["x"].detach()[0, :n].requires_grad_()
    y = low_rank_linear(x, t["weight"], t["bias"], t["a"], t["b"], SCALE, dropout=0.5, gain=t["gain"])
    y.sum().backward()
    assert y.shape == (n, H) and x.grad.shape == x.shape and t["a"].grad.shape == t["a"].shape


def kept(run: object) -> dict[int, int]:
    """Bytes of each storage that autograd keeps."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run()
    assert y.requires_grad
    return storages


def test_only_x_and_the_narrow_product_are_kept() -> None:
    t = tensors(torch.bfloat16)
    parameters = {v.untyped_storage().data_ptr() for k, v in t.items() if v is not None and k != "x"}
    storages = kept(lambda: low_rank_linear(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE, dropout=0.1))
    assert sum(size for at, size in storages.items() if at not in parameters) == 2 * N * (D + R)


def test_autocast_keeps_no_copy_of_the_weight() -> None:
    t = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        storages = kept(lambda: low_rank_linear(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE))
        y = low_rank_linear(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE)
        eager = plain(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE)
    assert y.dtype == torch.bfloat16 and t["weight"].untyped_storage().data_ptr() in storages
    torch.testing.assert_close(y, eager, atol=0.2, rtol=0.03)
    found = gradients(y, t)
    assert {g.dtype for g in found.values()} == {torch.float32}
    torch.testing.assert_close(found, gradients(eager, t), atol=0.3, rtol=0.05)


def test_the_weight_is_given_no_gradient_and_gets_one_when_trained() -> None:
    t = tensors()
    t["weight"].requires_grad_()
    y = low_rank_linear(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE)
    torch.testing.assert_close(gradients(y, t), gradients(formula(t, None, 1, 1), t))


def test_a_second_backward_raises_and_a_retained_one_repeats() -> None:
    t = tensors()
    y = low_rank_linear(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE, dropout=0.5).sum()
    y.backward(retain_graph=True)
    first = t["x"].grad.clone()
    y.backward()
    torch.testing.assert_close(t["x"].grad, 2 * first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_used_twice_and_accumulated() -> None:
    t = tensors()
    square = {"w": torch.randn(D, D, dtype=torch.float64), "b": torch.randn(D, R, dtype=torch.float64)}
    square["b"].requires_grad_()

    def twice(product: object) -> Tensor:
        once = product(t["x"], square["w"], None, t["a"], square["b"], SCALE)
        return product(once, square["w"], None, t["a"], square["b"], SCALE)

    leaves = [t["x"], t["a"], square["b"]]
    ours = torch.autograd.grad(twice(low_rank_linear).square().sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad(twice(plain).square().sum(), leaves))


def test_activation_checkpointing_draws_the_same_mask() -> None:
    def loss(recompute: bool) -> dict[str, Tensor]:
        torch.manual_seed(11)
        t = tensors()
        torch.manual_seed(11)

        def run(x: Tensor) -> Tensor:
            return low_rank_linear(x, t["weight"], t["bias"], t["a"], t["b"], SCALE, dropout=0.4)

        y = checkpoint(run, t["x"], use_reentrant=False) if recompute else run(t["x"])
        return {"y": y.detach()} | gradients(y, t)

    torch.testing.assert_close(loss(True), loss(False), rtol=0, atol=0)


def test_compiled_is_the_formula() -> None:
    t = tensors(torch.float32, groups=2, gain=True)

    def run(t: dict) -> Tensor:
        return low_rank_linear(t["x"], t["weight"], t["bias"], t["a"], t["b"], SCALE, gain=t["gain"], groups=2)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled(t), t), gradients(run(t), t))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_the_mask_keeps_its_share(p: float) -> None:
    like = torch.empty(400, 997)
    mask = keep_mask(like, 1 - p, seed=7)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    sd = (p * (1 - p) / like.numel()) ** 0.5
    assert abs(1 - p - mask.double().mean().item()) < 5 * sd + 1 / low_rank.STEPS
    assert torch.equal(mask, keep_mask(like, 1 - p, seed=7)) and not torch.equal(mask, keep_mask(like, 1 - p, seed=8))
    along = torch.corrcoef(torch.stack([mask[:, :-1].flatten(), mask[:, 1:].flatten()]))[0, 1]
    assert abs(along) < 5 / like.numel() ** 0.5


def test_the_product_by_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides and sizes that oneDNN gets in the backward pass, whichever library this processor would take."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN product")
    monkeypatch.setattr(products, "LARGE", 0)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(64, 48), torch.randn(32, 48), torch.randn(32)
    cases = [
        (x, weight, bias),
        (x, weight.T.contiguous().T, None),
        (x.T, x[:32].T.contiguous().T[:, :1].expand(32, 64), None),
    ]
    cases += [(x[:, :24], weight[:, 24:], bias), (x[:0], weight, bias)]
    for takes in (True, False):
        monkeypatch.setattr(products, "onednn_is_faster", lambda takes=takes: takes)
        for inputs, matrix, added in cases:
            expected = inputs.double() @ matrix.double().T + (0 if added is None else added)
            got = products.linear(inputs, matrix, added)
            torch.testing.assert_close(got, expected.float(), atol=1e-3, rtol=1e-4)


def test_parts_of_wider_matrices_stay_with_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []

    def onednn(x: Tensor, weight: Tensor, *_: object) -> Tensor:
        taken.append(tuple(weight.shape))
        return x @ weight.T

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", onednn, raising=False)
    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    wide, x = torch.randn(6, 16), torch.randn(4, 6)
    products.linear(x, wide.t())
    assert taken == [(16, 6)]
    for weight in (wide[:, :8].t(), wide[:1].expand(8, 16).t()[:, :6]):
        torch.testing.assert_close(products.linear(x, weight), x @ weight.T)
    assert len(taken) == 1


def test_the_module_can_be_copied_and_moved() -> None:
    from feedfwd.ffn.lora_linear import Adapter, LoRALinear

    layer = LoRALinear(nn.Linear(D, H))
    layer.add("default", Adapter(rank=2, alpha=4))
    layer.activate("default")
    twin = copy.deepcopy(layer).to(torch.bfloat16)
    x = torch.randn(3, D)
    assert twin(x.bfloat16()).dtype == torch.bfloat16 and twin.active == "default"
