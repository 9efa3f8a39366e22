"""Reading token after token: what generation asks of a model."""

# B texts, T tokens, W width, H query heads, K key and value heads, D head width, V vocabulary

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedfwd.ffn.kernels import plain
from feedfwd.models.attention import Sight, attend
from feedfwd.models.positions import tables
from feedfwd.models.transformer import Attention, Block, Transformer

LARGE = 2**31  # bytes of a model that isn't copied to be read faster


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
        self.model = model = for_reading(model)
        packed = [block.attention.packed_map() for block in model.each_block()]
        self.maps = [None if one is None else (columns_first(one[0]), one[1]) for one in packed]
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
            closing = (ids == model.end).long()
            documents = (0 if documents is None else documents) + closing.cumsum(1) - closing
            for row, text in enumerate(texts):
                ends = [i for i, one in enumerate(text) if one == model.end]
                self.first[row] += ends[-1] + 1 if ends else 0
        positions = (torch.arange(longest, device=device) - self.pad_B[:, None]).clamp(min=0)
        x, turn = model.embed(ids, positions), None
        if model.positions == "rope":
            turn = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        sight = Sight(True, model.window, documents)
        shape = len(texts) * model.kv_heads, max(model.context, longest) + 1, model.head_width
        self.keys = [x.new_empty(shape) for _ in model.blocks]
        self.values = [x.new_empty(shape) for _ in model.blocks]
        self.length = longest
        for layer, block in enumerate(model.each_block()):

            def attention(h: Tensor, layer: int = layer, block: Block = block) -> Tensor:
                q, k, v = block.attention.turned(h, turn)
                self.keys[layer][:, :longest], self.values[layer][:, :longest] = k.flatten(0, 1), v.flatten(0, 1)
                return block.attention.joined(attend(q, k, v, sight))

            x = block(x, attention)
        return model.head(model.norm(x[:, -1]))

    def step(self, ids: Sequence[int]) -> Tensor:  # -> (B, V)
        model, at = self.model, self.length
        K, D, B = model.kv_heads, model.head_width, len(ids)
        self.length += 1
        positions = at - self.pad_B[:, None]
        x, turn = model.embed(torch.tensor(ids, device=positions.device)[:, None], positions), None
        if model.positions == "rope":
            cos, sin = (table[positions].to(x.dtype).unsqueeze(2) for table in (self.cos, self.sin))
            turn = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        low = min(self.first) if model.window is None else max(min(self.first), self.length - model.window)
        unseen = None
        if max(self.first) > low:
            first = torch.tensor(self.first, device=positions.device).repeat_interleave(K)
            unseen = (torch.arange(low, self.length, device=positions.device) < first[:, None])[:, None]

        for layer, block in enumerate(model.each_block()):

            def attention(h: Tensor, layer: int = layer, block: Block = block) -> Tensor:
                qk, v = self._projected(h, layer, block.attention)
                if turn is not None:  # (a, b) -> (a cos - b sin, b cos + a sin)
                    qk = torch.addcmul(qk * turn[0], qk.roll(D // 2, -1), turn[1])
                keys, values = self.keys[layer], self.values[layer]
                keys[:, at], values[:, at] = qk[:, 0, -K:].reshape(B * K, D), v.reshape(B * K, D)
                # The queries that share a key head stand as its rows, each seeing all keys.
                q = qk[:, 0, :-K].reshape(B * K, -1, D)
                scores = torch.bmm(q, keys[:, low : at + 1].mT).mul_(D**-0.5)
                if unseen is not None:
                    scores.masked_fill_(unseen, -math.inf)
                y: Tensor = block.attention.out(torch.bmm(scores.softmax(-1), values[:, low : at + 1]).view(B, 1, -1))
                return y

            with plain():  # without a backward to save for, the formula has less to do
                x = block(x, attention)
        if model.end is not None:
            self.first = [at + 1 if one == model.end else f for one, f in zip(ids, self.first, strict=True)]
        return model.head(model.norm(x[:, -1]))

    def _projected(self, h: Tensor, layer: int, part: Attention) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, 1, H + K, D), values (B, K, D), of one token."""
        packed = self.maps[layer]
        if packed is None:
            qkv = torch.cat(part.project(h), 2)
        else:
            qkv = F.linear(h, *packed).view(len(h), 1, -1, part.head_width)
        qk, v = qkv[:, :, : -part.kv_heads], qkv[:, 0, -part.kv_heads :]
        if self.model.qk_norm:
            qk = torch.cat((part.q_norm(qk[:, :, : part.heads]), part.k_norm(qk[:, :, part.heads :])), 2)
        return qk, v


def for_reading(model: Transformer) -> Transformer:
    """A copy whose matrices lie in memory column by column: with one token to read, nearly twice as fast on a CPU.

    Where that would take too much memory, or on another device, the model itself.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if model.head_weight.device.type != "cpu" or size > LARGE:
        return model
    by_row = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    laid_out = {
        id(p): nn.Parameter(p.detach() if p.ndim != 2 or id(p) in by_row else columns_first(p), requires_grad=False)
        for p in model.parameters()
    }
    model = copy.deepcopy(model, laid_out)  # every parameter counts as copied already
    if model.tied:  # the embedding reads rows, the output layer columns: here they share no memory
        head = nn.Linear(1, 1, bias=False)
        head.weight = nn.Parameter(columns_first(model.head_weight), requires_grad=False)
        model.head = head
    return model


def columns_first(weight: Tensor) -> Tensor:
    """The same matrix, laid out so that `x @ weight.T` walks through memory in one direction for a single x."""
    return weight.detach().t().contiguous().t()
