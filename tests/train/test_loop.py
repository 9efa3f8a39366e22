"""The loop: the same numbers however a batch is split, clipping, hooks, and what holds at every yield."""

from collections.abc import Callable, Iterator
from itertools import repeat

import pytest
import torch
from torch import Tensor, nn

from feedfwd.data.batches import Batch
from feedfwd.errors import DataError
from feedfwd.train.averaging import EMA
from feedfwd.train.finite import global_norm
from feedfwd.train.loop import Step, autograd, shares_of, train
from feedfwd.train.losses import build_loss
from feedfwd.train.optimizers import build_optimizer
from feedfwd.train.precision import Precision

N, T, D, C = 12, 5, 3, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, C)).double()


def examples(tokens: bool = False) -> Batch:
    g = torch.Generator().manual_seed(1)
    shape = (N, T) if tokens else (N,)
    return Batch(
        torch.randn(*shape, D, generator=g, dtype=torch.float64),
        torch.randint(C, shape, generator=g),
        torch.rand(shape, generator=g, dtype=torch.float64),
    )


def cut(batch: Batch, ends: list[int]) -> list[Batch]:
    return [
        Batch(batch.inputs[a:b], batch.targets[a:b], None if batch.weights is None else batch.weights[a:b])
        for a, b in zip([0, *ends], [*ends, len(batch.inputs)], strict=True)
    ]


def one_update(parts: list[Batch], loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Step, list[Tensor]]:
    """The step and its gradients, which stay readable at the yield."""
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    step = next(train(model, iter(parts), loss, sgd, steps=1, accumulate=len(parts)))
    return step, [p.grad for p in model.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("options", [{}, {"class_weights": [1.0, 2.0, 0.5, 3.0], "label_smoothing": 0.1}])
@pytest.mark.parametrize("ends", [[6], [1], [2, 3, 9], list(range(1, N))])
def test_loss_and_gradients_are_the_same_however_split(
    weighted: bool, tokens: bool, options: dict, ends: list[int]
) -> None:
    batch, loss = examples(tokens), build_loss("cross_entropy", **options)
    if not weighted:
        batch = Batch(batch.inputs, batch.targets)
    whole, gradients = one_update([batch], loss)
    split, parts = one_update(cut(batch, ends), loss)
    torch.testing.assert_close(split.loss, whole.loss, rtol=1e-12, atol=1e-12)
    assert split.examples == whole.examples == N
    for a, b in zip(parts, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [True, False])
def test_the_mean_is_what_autograd_gives_for_the_formula(tokens: bool) -> None:
    batch, model, loss = examples(tokens), network(), build_loss("cross_entropy")
    step, gradients = one_update([batch], loss)
    mean = (loss(model(batch.inputs), batch.targets) * batch.weights).sum() / batch.weights.sum()  # type: ignore
    torch.testing.assert_close(step.loss, mean.detach())
    for a, b in zip(gradients, torch.autograd.grad(mean, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_padding_of_weight_zero_changes_nothing() -> None:
    loss, batch = build_loss("cross_entropy"), examples(tokens=True)
    padded = Batch(
        torch.cat([batch.inputs, torch.ones(N, 2, D)], 1),
        torch.cat([batch.targets, torch.zeros(N, 2, dtype=torch.long)], 1),
        torch.cat([batch.weights, torch.zeros(N, 2)], 1),  # type: ignore[list-item]
    )
    (a, ga), (b, gb) = one_update([batch], loss), one_update([padded], loss)
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(ga, gb)


def test_one_weight_an_example_counts_the_mean_of_its_tokens() -> None:
    losses, weights = torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.tensor([1.0, 3.0])
    assert (losses * shares_of(losses, weights, 4.0)).sum() == (1 * 2 + 3 * 5) / 4
    assert (losses * shares_of(losses, None, 2)).sum() == 3.5


def test_weights_that_dont_fit_are_an_error() -> None:
    with pytest.raises(DataError, match=r"weights of shape \(3,\).*losses of shape \(2,\)"):
        shares_of(torch.zeros(2), torch.ones(3), 3.0)


def test_clipping_bounds_the_whole_gradient_and_reports_the_norm_before() -> None:
    loss = build_loss("cross_entropy")
    free, gradients = one_update([examples()], loss)
    assert free.grad_norm is None
    norm = global_norm(gradients)
    for clip in (norm.item() / 3, norm.item() * 3):
        model = network()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        step = next(train(model, iter([examples()]), loss, sgd, steps=1, clip=clip))
        torch.testing.assert_close(step.grad_norm, norm)
        clipped = [p.grad for p in model.parameters()]
        torch.testing.assert_close(global_norm(clipped), norm.clamp(max=clip))  # type: ignore[arg-type]
        torch.testing.assert_close(clipped[0] / gradients[0], torch.full_like(gradients[0], min(1, clip / norm)))


def test_schedule_multiplies_each_groups_base_rate_and_goes_on_from_start() -> None:
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
    sgd, seen = torch.optim.SGD(groups), []
    steps = train(model, repeat(examples()), build_loss("cross_entropy"), sgd, steps=5, start=2, schedule=lambda n: n)
    for step in steps:
        seen.append((step.n, step.lr, sgd.param_groups[1]["lr"]))
    assert seen == [(n + 1, pytest.approx(0.1 * n), pytest.approx(0.2 * n)) for n in (2, 3, 4)]


def test_every_yield_is_between_updates() -> None:
    """Stop anywhere, go on with the same objects: the weights are those of a run without the stop."""

    def batches() -> Iterator[Batch]:
        g = torch.Generator().manual_seed(3)
        while True:
            yield Batch(torch.randn(4, D, generator=g).double(), torch.randint(C, (4,), generator=g))

    loss = build_loss("cross_entropy")
    whole, stopped = network(), network()
    for _ in train(whole, batches(), loss, build_optimizer(whole, "adam", 0.01), steps=9, accumulate=2):
        pass
    stream, adam, done = batches(), build_optimizer(stopped, "adam", 0.01), 0
    while done < 9:
        for step in train(stopped, stream, loss, adam, steps=9, start=done, accumulate=2):
            done = step.n
            if done % 2:
                break
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), stopped.parameters(), strict=True))


def test_evaluating_in_between_doesnt_leave_the_model_in_evaluation() -> None:
    model = nn.Sequential(nn.Dropout(0.5), network())
    for _ in train(model, repeat(examples()), build_loss("cross_entropy"), build_optimizer(model, "sgd", 0.1), steps=3):
        assert model.training
        model.eval()


def test_gradients_may_come_from_elsewhere_into_a_flat_parameter() -> None:
    """What a fast path does: the optimizer sees one flat tensor, of which the model's parameters are views."""
    plain, fast = network(), network()
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in fast.parameters()]))
    offset = 0
    for p in fast.parameters():
        p.data = flat.detach()[offset : offset + p.numel()].view_as(p)
        offset += p.numel()

    def into_flat(model: nn.Module, batch: Batch, loss: Callable, total: Tensor | float) -> Tensor:
        for p in model.parameters():
            p.grad = None
        value = autograd(model, batch, loss, total)
        gathered = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
        flat.grad = gathered if flat.grad is None else flat.grad + gathered
        return value

    loss, parts, ema = build_loss("cross_entropy"), cut(examples(), [5]), EMA(fast, 0.9)
    adam = torch.optim.Adam([flat], lr=0.01)
    settings = {"steps": 6, "accumulate": 2, "clip": 0.5}
    ours = list(train(fast, iter(parts * 6), loss, adam, gradients=into_flat, ema=ema, **settings))
    theirs = list(train(plain, iter(parts * 6), loss, torch.optim.Adam(plain.parameters(), lr=0.01), **settings))
    torch.testing.assert_close([s.loss for s in ours], [s.loss for s in theirs])
    torch.testing.assert_close(list(fast.parameters()), list(plain.parameters()))
    assert ema.updates == 6


def test_products_run_in_bf16_under_autocast_and_weights_stay_fp32() -> None:
    model, seen = network().float(), []
    model[0].register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    batch = Batch(examples().inputs.float(), examples().targets)
    bf16 = Precision("bf16", "")
    step = next(
        train(
            model,
            iter([batch]),
            build_loss("cross_entropy"),
            build_optimizer(model, "sgd", 0.1),
            steps=1,
            precision=bf16,
        )
    )
    assert seen == [torch.bfloat16] and step.loss.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())  # type: ignore[union-attr]


def test_batches_that_end_are_an_error() -> None:
    model = network()
    steps = train(model, iter([examples()] * 3), build_loss("mse"), build_optimizer(model, "sgd", 0.1), steps=3)
    with pytest.raises(DataError, match="don't pair"):
        next(steps)
    steps = train(
        model,
        iter([examples()] * 3),
        build_loss("cross_entropy"),
        build_optimizer(model, "sgd", 0.1),
        steps=3,
        accumulate=2,
    )
    next(steps)
    with pytest.raises(DataError, match="ended in update 2 of 3"):
        next(steps)
