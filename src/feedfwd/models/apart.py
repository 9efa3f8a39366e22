"""Several texts in a row, of which none sees another."""

# B rows, T tokens, W width, V vocabulary

from torch import Tensor, nn

from feedfwd.models.transformer import Transformer


class Apart(nn.Module):
    """A Transformer over rows (B, 2, T) of tokens and, below them, each token's place in its own text.

    A text begins where a place is 0, and sees and is seen by itself alone: what it gives is what it gives in a row of
    its own. Parameters are the Transformer's own.

    >>> import torch
    >>> model = Transformer(50, width=8, depth=1, heads=2, hidden=16, positions="learned", context=4).eval()
    >>> rows = torch.tensor([[[5, 6, 7, 6], [0, 1, 0, 1]]])
    >>> torch.allclose(Apart(model).hidden(rows)[0, 2:], model.hidden(torch.tensor([[7, 6]]))[0], atol=1e-6)
    True
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor) -> Tensor:  # (B, 2, T) -> (B, T, V)
        y: Tensor = self.model.head(self.hidden(rows))
        return y

    def hidden(self, rows: Tensor) -> Tensor:  # (B, 2, T) -> (B, T, W)
        """The last states."""
        ids, places = rows.unbind(1)
        return self.model.hidden(ids, (places == 0).cumsum(1), positions=places)

    @property
    def head_weight(self) -> Tensor:
        return self.model.head_weight
