"""Losses of vectors: answers are to score above the rest, texts of one label to lie together, none to stray."""

# B queries, M candidates of the whole batch, K candidates of one query at most, R rows, W width, O outputs

import torch
import torch.nn.functional as F
from torch import Tensor

from feedfwd.train.losses import Loss


def contrastive(vectors_RW: Tensor, targets_BM: Tensor, *, temperature: float) -> Tensor:
    """(B,): −log softmax of each query's answer among the batch's candidates, the cosines divided by the temperature.

    `vectors_RW`, of length 1, are the queries' and below them the candidates', R = B + M. `targets_BM` holds 1 for the
    answer, 0 for what counts as none, and −1 for what doesn't count: other answers of the query, above all. Van den
    Oord et al. 2018, arXiv 1807.03748 (InfoNCE); Henderson et al. 2017, arXiv 1705.00652, take a batch's answers.

    >>> vectors = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    >>> contrastive(vectors, torch.tensor([[1, 0], [-1, 1]]), temperature=1.0)
    tensor([0.3133, -0.0000])
    """
    queries, candidates = torch.split(vectors_RW, list(targets_BM.shape))
    with torch.autocast(vectors_RW.device.type, enabled=False):  # 8 bits of a cosine / 0.05 are off by a tenth
        logits = queries.float() @ candidates.float().T / temperature
        return F.cross_entropy(logits.masked_fill(targets_BM < 0, -torch.inf), targets_BM.argmax(1), reduction="none")


def by_label(vectors_BW: Tensor, labels_B: Tensor, *, temperature: float) -> Tensor:
    """(B,): −log softmax of the batch's other examples by their cosine / temperature, over those of the same label.

    Khosla et al. 2020, arXiv 2004.11362, eq. 2. An example whose label no other has counts 0, and the others as much
    more, so that the batch's mean is theirs.

    >>> vectors = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), dim=1)
    >>> by_label(vectors, torch.tensor([0, 0, 1, 2]), temperature=0.5)[:2]
    tensor([0.4791, 0.4791])
    """
    with torch.autocast(vectors_BW.device.type, enabled=False):
        itself = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
        same = (labels_B[:, None] == labels_B) & ~itself
        v = F.normalize(vectors_BW.float(), dim=1)
        chances = (v @ v.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1).masked_fill(~same, 0.0)
        found = same.any(1)
        return -chances.sum(1) / same.sum(1).clamp(min=1) * (len(found) / found.sum().clamp(min=1))


def away(vectors_BW: Tensor, before_BW: Tensor) -> Tensor:
    """(B,): 1 − the cosine of each vector with the one that it was before training.

    Jung et al. 2016, arXiv 1607.00122 ("less-forgetting learning"), with the cosine for their squared distance.

    >>> away(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([0., 1.])
    """
    with torch.autocast(vectors_BW.device.type, enabled=False):
        return 1 - F.cosine_similarity(vectors_BW.float(), before_BW.float())


def beside(loss: Loss, outputs: int, *, contrast: float = 0.0, keep: float = 0.0, temperature: float = 0.1) -> Loss:
    """`loss` of an example's outputs, `contrast` times `by_label` and `keep` times `away` of the vector behind them.

    The network gives (B, O + W). The targets are labels (B,); with `keep` (B, 1 + W), a label and behind it the vector
    that the text had before.
    """

    def all_(y: Tensor, targets: Tensor) -> Tensor:
        vectors, labels = y[:, outputs:], targets[:, 0].long() if keep else targets
        found = loss(y[:, :outputs], labels)
        if contrast:
            found = found + contrast * by_label(vectors, labels, temperature=temperature)
        return found + keep * away(vectors, targets[:, 1:]) if keep else found

    return all_


def listwise(scores_R1: Tensor, targets_BK: Tensor) -> Tensor:
    """(B,): cross-entropy of the softmax of a query's scores to its relevances, which are made to sum to 1.

    `targets_BK` are the relevances of each query's candidates, −1 where it has fewer than K; the scores stand in the
    same order without the gaps. Cao et al. 2007 (ListNet), with the relevances themselves for their softmax.

    >>> listwise(torch.zeros(5, 1), torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])).exp()
    tensor([2., 3.])
    """
    there = targets_BK >= 0
    with torch.autocast(scores_R1.device.type, enabled=False):
        logits = torch.full(there.shape, -torch.inf, device=scores_R1.device)
        logits = logits.masked_scatter(there, scores_R1.float())
        shares = targets_BK.clamp(min=0)
        shares = shares / shares.sum(1, keepdim=True)
        return -(shares * logits.log_softmax(1).masked_fill(~there, 0.0)).sum(1)


def pointwise(scores_R1: Tensor, targets_RK: Tensor) -> Tensor:
    """(R,): binary cross-entropy of each score to its relevance, which is from 0 to 1.

    >>> pointwise(torch.zeros(2, 1), torch.tensor([[1.0], [0.5]])).exp()
    tensor([2., 2.])
    """
    with torch.autocast(scores_R1.device.type, enabled=False):
        return F.binary_cross_entropy_with_logits(scores_R1.float(), targets_RK, reduction="none").mean(1)
