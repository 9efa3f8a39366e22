"""Losses over candidates, against the formulas written out."""

import pytest
import torch
import torch.nn.functional as F

from feedfwd.train.contrastive import away, beside, by_label, contrastive, listwise, pointwise
from feedfwd.train.losses import cross_entropy


def test_contrastive_is_the_formula_and_what_is_masked_does_not_count():
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(3 + 5, 6), dim=1)
    targets = torch.tensor([[1, 0, 0, -1, 0], [0, 0, 1, 0, 0], [-1, -1, 0, 0, 1]])
    found = contrastive(vectors, targets, temperature=0.1)
    for i in range(3):
        logits = vectors[:3][i] @ vectors[3:].T / 0.1
        kept = targets[i] >= 0
        answer = logits[targets[i] == 1]
        assert found[i] == pytest.approx(float(logits[kept].logsumexp(0) - answer), abs=1e-5)
    moved = vectors.clone()
    moved[3 + 3] = F.normalize(torch.randn(6), dim=0)
    assert contrastive(moved, targets, temperature=0.1)[0] == found[0]


def test_a_batch_in_bf16_keeps_its_cosines():
    torch.manual_seed(0)
    vectors, targets = F.normalize(torch.randn(40, 64), dim=1), torch.eye(20).long()
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive(vectors, targets, temperature=0.02)
    torch.testing.assert_close(found, contrastive(vectors, targets, temperature=0.02))


def test_texts_of_one_label_are_drawn_together_as_the_paper_says():
    torch.manual_seed(0)
    vectors, labels = torch.randn(7, 5, requires_grad=True), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    found = by_label(vectors, labels, temperature=0.3)
    unit, wanted = F.normalize(vectors, dim=1), []
    for i in range(7):
        others = [j for j in range(7) if j != i]
        below = torch.stack([unit[i] @ unit[j] / 0.3 for j in others]).logsumexp(0)
        same = [j for j in others if labels[j] == labels[i]]
        wanted.append(sum((below - unit[i] @ unit[j] / 0.3 for j in same), torch.zeros(())) / max(1, len(same)))
    torch.testing.assert_close(found, torch.stack(wanted) * 7 / 5)  # two have no other of their label
    found.mean().backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all()


@pytest.mark.parametrize("many", [1, 3])
def test_where_no_two_share_a_label_nothing_is_learnt(many: int):
    vectors = torch.randn(many, 5, requires_grad=True)
    found = by_label(vectors, torch.arange(many), temperature=0.1)
    found.mean().backward()
    assert vectors.grad is not None and found.tolist() == [0] * many and not vectors.grad.any()


def test_a_comparison_beside_a_loss_counts_by_its_weight():
    torch.manual_seed(0)
    y, labels = torch.randn(6, 3 + 4), torch.tensor([0, 1, 2, 0, 1, 2])
    plain, compared = cross_entropy(y[:, :3], labels), by_label(y[:, 3:], labels, temperature=0.1)
    torch.testing.assert_close(beside(cross_entropy, 3, contrast=0.5)(y, labels), plain + 0.5 * compared)
    before = torch.randn(6, 4)
    far = 1 - (F.normalize(y[:, 3:], dim=1) * F.normalize(before, dim=1)).sum(1)
    with_vectors = torch.cat([labels[:, None].float(), before], 1)
    torch.testing.assert_close(beside(cross_entropy, 3, keep=2.0)(y, with_vectors), plain + 2 * far)
    all_ = beside(cross_entropy, 3, contrast=0.5, keep=2.0)(y, with_vectors)
    torch.testing.assert_close(all_, plain + 0.5 * compared + 2 * far)


def test_what_a_vector_was_is_compared_in_full_precision():
    torch.manual_seed(0)
    now, before = torch.randn(20, 64), torch.randn(20, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = away(now, before)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, away(now, before))


def test_listwise_is_the_formula_with_gaps():
    torch.manual_seed(0)
    targets = torch.tensor([[2.0, 0.0, 1.0, -1.0], [0.0, 1.0, -1.0, -1.0]])
    scores = torch.randn(5, 1, requires_grad=True)
    found = listwise(scores, targets)
    first, second = scores[:3, 0].log_softmax(0), scores[3:, 0].log_softmax(0)
    wanted = torch.stack([-(2 * first[0] + first[2]) / 3, -second[1]])
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_pointwise_is_least_at_the_relevance():
    targets = torch.tensor([[0.25], [1.0]])
    best = torch.tensor([[0.25], [0.9999]]).logit()
    for shift in (-0.5, 0.5):
        assert (pointwise(best + shift, targets)[0] > pointwise(best, targets)[0]).all()
