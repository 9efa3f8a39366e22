"""Reading token after token: what generation asks of a model."""

# B texts, T tokens, W width, H query heads, K key and value heads, D head width, V vocabulary

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from feedfwd.models.attention import Sight, attend, documents_of
from feedfwd.models.block import Block
from feedfwd.models.heads import TiedHead
from feedfwd.models.positions import tables
from feedfwd.models.stepping import AttentionStep, Moment, after, ffn_step, is_small
from feedfwd.models.transformer import Transformer


class Rereading:
    """The logits of the next token by reading each text from its beginning: the plain twin of `Remembering`."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def start(self, texts: Sequence[Sequence[int]]) -> Tensor:  # -> (B, V)
        device = self.model.head_weight.device
        self.texts = [list(text) for text in texts]
        return torch.cat([self.model(torch.tensor([text], device=device))[:, -1] for text in self.texts])

    def step(self, ids: Sequence[int]) -> Tensor:  # -> (B, V)
        return self.start([[*text, one] for text, one in zip(self.texts, ids, strict=True)])


class Remembering:
    """The same with every layer's keys and values kept, so that a step reads one token of each text.

    Texts of different lengths stand right-aligned in one batch. `first` is where in the batch's columns a row's text
    begins, or its present document.
    """

    def __init__(self, model: Transformer) -> None:
        self.model, small = model, is_small(model)
        self.attentions = [AttentionStep(model, block, small) for block in model.each_block()]
        self.ffns = [ffn_step(block, small) for block in model.each_block()]
        self.head = after(model.norm, model.head_weight, None, small) if _is_plain(model.head) else _head_of(model)
        if model.positions == "rope":
            every = torch.arange(model.context + 1, device=model.head_weight.device)
            self.cos, self.sin = tables(every, model.head_width, model.rope_base, model.rope_scaling)

    def start(self, texts: Sequence[Sequence[int]]) -> Tensor:  # -> (B, V)
        model, device = self.model, self.model.head_weight.device
        longest = max(map(len, texts))
        self.pads = [longest - len(text) for text in texts]
        ids = torch.tensor([[0] * pad + list(text) for pad, text in zip(self.pads, texts, strict=True)], device=device)
        model.check(ids)
        self.pad_B = torch.tensor(self.pads, device=device)
        self.first = list(self.pads)
        documents = None
        if any(self.pads):
            documents = (torch.arange(longest, device=device) >= self.pad_B[:, None]).long()
        if model.end is not None:
            documents = (0 if documents is None else documents) + documents_of(ids, model.end)
            for row, text in enumerate(texts):
                ends = [i for i, one in enumerate(text) if one == model.end]
                self.first[row] += ends[-1] if ends else 0
        positions = (torch.arange(longest, device=device) - self.pad_B[:, None]).clamp(min=0)
        x, turn = model.embed(ids, positions), None
        if model.positions == "rope":
            turn = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        sight = Sight(True, model.window, documents)
        self.length = longest
        for layer, block in enumerate(model.each_block()):

            def attention(h: Tensor, layer: int = layer, block: Block = block) -> Tensor:
                q, k, v = block.attention.turned(h, turn)
                self.attentions[layer].start(k, v, max(model.context, longest) + 1)
                return block.attention.joined(attend(q, k, v, sight))

            x = block(x, attention)
        return model.head(model.norm(x[:, -1]))

    def step(self, ids: Sequence[int]) -> Tensor:  # -> (B, V)
        model, at, B = self.model, self.length, len(ids)
        H, K, D = model.heads, model.kv_heads, model.head_width
        self.length += 1
        if model.end is not None:
            self.first = [at if one == model.end else f for one, f in zip(ids, self.first, strict=True)]
        positions_B = at - self.pad_B
        x = model.embed(torch.tensor(ids, device=positions_B.device)[:, None], positions_B[:, None])[:, 0]
        turn = None
        if model.positions == "rope":
            turn = torch.ones(B, H + 2 * K, D // 2, dtype=torch.complex64, device=x.device)
            turn[:, : H + K] = torch.complex(self.cos[positions_B], self.sin[positions_B]).unsqueeze(1)
        low = min(self.first) if model.window is None else max(min(self.first), self.length - model.window)
        unseen = None
        if max(self.first) > low:
            first = torch.tensor(self.first, device=x.device).repeat_interleave(K)
            unseen = (torch.arange(low, self.length, device=x.device) < first[:, None])[:, None]
        now = Moment(at, low, unseen, turn)
        for attention, ffn in zip(self.attentions, self.ffns, strict=True):
            x = ffn(attention(x, now))
        return self.head(x)


def _is_plain(head: nn.Module) -> bool:
    return type(head) in (nn.Linear, TiedHead)


def _head_of(model: Transformer) -> Callable[[Tensor], Tensor]:
    return lambda x: model.head(model.norm(x))
