"""BERT's head for hidden tokens as one product, for a cross-entropy that needn't hold all logits."""

# B rows, T tokens, W width, V vocabulary

from typing import Any

import torch
from torch import Tensor, nn

from feedfwd.models.heads import MaskedHead
from feedfwd.models.transformer import Transformer


class Filling(nn.Module):
    """A model with BERT's head as one whose outputs are `hidden(ids) @ head_weight.T`: the head's own layer goes to the
    states, and its bias stands beside the matrix, for a 1 beside the states.

    >>> from feedfwd.config import FFNSpec
    >>> model = Transformer(50, width=8, depth=1, heads=2, hidden=16, ffn=FFNSpec(), causal=False, head="masked").eval()
    >>> ids = torch.tensor([[3, 4, 5]])
    >>> torch.allclose(Filling(model)(ids), model(ids), atol=1e-6)
    True
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        return self.hidden(ids) @ self.head_weight.T

    def hidden(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, W + 1)
        head = self._head
        h = head.norm(head.activation(head.dense(self.model.hidden(ids))))
        return torch.cat([h, h.new_ones(*h.shape[:-1], 1)], -1)

    @property
    def head_weight(self) -> Tensor:  # (V, W + 1)
        weight: Any = self._head.matrix.weight
        return torch.cat([weight, self._head.bias[:, None]], 1)

    @property
    def _head(self) -> MaskedHead:
        head = self.model.head
        assert isinstance(head, MaskedHead)
        return head
