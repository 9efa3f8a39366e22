"""The network over a table's columns: embeddings as their formulas say, members that learn by themselves."""

import pytest
import torch

from feedfwd.models.tabular import Periodic, Piecewise, Tabular, per_member
from feedfwd.train.losses import build_loss


def test_piecewise_is_the_papers_encoding() -> None:
    layer = Piecewise([[0.0, 1.0, 3.0], [-1.0, 2.0]], width=2)
    with torch.no_grad():
        layer.line.zero_(), layer.bias.zero_()
        layer.steps[0, 0, 0] = layer.steps[0, 1, 1] = layer.steps[1, 0, 0] = 1.0
    x = torch.tensor([[0.5, -1.0], [2.0, 0.5], [5.0, 5.0], [-1.0, 2.0]])
    first, second = layer(x)[:, 0].tolist(), layer(x)[:, 1, 0].tolist()
    assert first == [[0.5, 0.0], [1.0, 0.5], [1.0, 2.0], [-1.0, 0.0]]  # the ends go on, the inner ones stop
    assert second == pytest.approx([0.0, 0.5, 2.0, 1.0])


def test_periodic_keeps_the_number_itself() -> None:
    x = torch.randn(5, 3)
    assert torch.equal(Periodic(3, 4)(x)[..., 0], x) and Periodic(3, 4)(x).shape == (5, 3, 4)


@pytest.mark.parametrize("numbers", ["plain", "periodic", "piecewise"])
@pytest.mark.parametrize("members", [1, 4])
def test_rows_become_outputs(numbers: str, members: int) -> None:
    model = Tabular([[0.0, 1.0]] * 2, 1, [3, 5], [16, 8], 3, numbers=numbers, members=members)  # type: ignore[arg-type]
    x = torch.tensor([[0.1, 0.2, 1.0, 2.0, 4.0], [3.0, -2.0, 0.0, 0.0, 0.0]])
    assert model(x).shape == ((2, 3) if members == 1 else (2, 4, 3))
    assert model.eval()(x).shape == (2, 3) and model.sizes == (5, 16, 8, 3)
    assert model.parameter_count == sum(row.parameters for row in model.layers()) and model.flops > 0
    changed = x.clone()
    changed[0, 4] = 1.0  # another name in the second category
    assert not torch.equal(model(changed)[0], model(x)[0]) and torch.equal(model(changed)[1], model(x)[1])


def test_members_answer_with_their_mean() -> None:
    model = Tabular([[0.0, 1.0]] * 2, 0, [], [8], 3, members=4)
    x = torch.randn(6, 2)
    each = model(x)
    mean = each.softmax(2).mean(1)
    torch.testing.assert_close(model.eval()(x).softmax(1), mean)
    torch.testing.assert_close(model(x), mean.log())
    values = Tabular([[0.0, 1.0]] * 2, 0, [], [8], 1, members=4, classify=False)
    torch.testing.assert_close(values(x).mean(1), values.eval()(x))
    one = Tabular([[0.0, 1.0]] * 2, 0, [], [8], 1, members=4)
    torch.testing.assert_close(one(x).sigmoid().mean(1), one.eval()(x).sigmoid())


def test_each_member_learns_by_itself() -> None:
    loss = per_member(build_loss("mse"))
    outputs, targets = torch.randn(5, 3, 1), torch.randn(5)
    torch.testing.assert_close(loss(outputs, targets), (outputs[..., 0] - targets[:, None]).square().mean(1))
    labels = torch.tensor([0, 1, 1, 0, 1])
    logits = torch.randn(5, 3, 2)
    plain = build_loss("cross_entropy")
    expected = torch.stack([plain(logits[:, k], labels) for k in range(3)], 1).mean(1)
    torch.testing.assert_close(per_member(plain)(logits, labels), expected)
    torch.testing.assert_close(per_member(plain)(logits[:, 0], labels), plain(logits[:, 0], labels))
