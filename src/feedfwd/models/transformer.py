"""The Transformer, encoder or decoder: a family (Llama, Qwen, GPT-2, BERT) is a row of settings here, not a class."""

# B rows, T tokens, W width, H query heads, K key and value heads, D head width, V vocabulary

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from feedfwd.errors import ConfigError, DataError, nearest
from feedfwd.ffn import parts
from feedfwd.ffn.init import Growth
from feedfwd.ffn.parts import Linear
from feedfwd.ffn.spec import FFNSpec, build_ffn, is_own
from feedfwd.models.attention import Sight, documents_of
from feedfwd.models.block import Attention, Block, Turn
from feedfwd.models.dropout import dropout as branch_dropout
from feedfwd.models.heads import HEADS, MaskedHead, TiedHead
from feedfwd.models.norms import norm
from feedfwd.models.positions import Scaling, tables

Lengths = Tensor | Sequence[int] | None  # tokens of each row, (B,)

BIASES = ("none", "qkv", "all")
PLACES = ("pre", "post")
POSITIONS = ("rope", "learned", "none")


class Transformer(nn.Module):
    """Token ids (B, T) to logits (B, T, V), or what else `head` gives.

    The defaults are Llama's: RMSNorm before each branch, rotary positions, no biases, tied embeddings. `kv_heads` (not
    given: `heads`) must divide `heads`, `head_width` (not given: width / heads) may be any even number. `hidden` is the
    width inside each feed-forward layer, which `ffn` describes; its init "auto" means "depth_scaled", as in the
    attention: 2·depth branches add up. Its init "mup" (Yang et al. 2022, arXiv 2203.03466) is the same network at
    `base_width`; at another width the last norm's gain starts at base_width / width, which is the paper's multiplier on
    the output, and `growth` tells the optimizer each parameter's rate. `hidden` and `heads` are to grow with the width:
    a head keeps its own, so that attention's 1/√D needs no change. `context` is the longest row it is trained on:
    learned positions end there, rotary ones go on. `causal=False` makes an encoder. With `end`, the token that closes a
    document, no token sees another document; `documents` (B, T) given to `forward` says the same in numbers. `dropout`
    acts on the embeddings and on what each branch adds. `recompute` keeps a block's input alone and runs the block
    again in the backward.

    `head` is "tokens" (a matrix, with `tied` the embedding's), "masked" (BERT's, which transforms first), "classes"
    (logits (B, C) of each row, from its first token where all tokens see each other and from its last one where not) or
    "none" (the last states themselves). `pooler` is BERT's map of a row's first state, before the classes if there are.
    `types` token types have a vector each, added to the embedding's: the first one's where no `types` (B, T) are given.

    Rows of different lengths stand on the left, filled up on the right by any token: `lengths`, one number a row, hides
    the filling from the rest. What comes out at filled places means nothing. Rows that are all full cost no mask.

    `hidden` gives the last states, what the output matrix `head_weight` meets, for a cross-entropy that needn't hold
    all logits.

    >>> model = Transformer(100, width=32, depth=2, heads=4, hidden=64)
    >>> model(torch.zeros(2, 7, dtype=torch.long)).shape
    torch.Size([2, 7, 100])
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        hidden: int = 1024,
        ffn: FFNSpec | None = None,
        kv_heads: int | None = None,
        head_width: int | None = None,
        norm_kind: str = "rms",
        norm_place: str = "pre",
        norm_eps: float = 1e-6,
        positions: str = "rope",
        context: int = 512,
        rope_base: float = 10_000.0,
        rope_scaling: Scaling | None = None,
        bias: str = "none",
        qk_norm: bool = False,
        causal: bool = True,
        window: int | None = None,
        tied: bool = True,
        head: str = "tokens",
        pooler: bool = False,
        classes: int | None = None,
        types: int = 0,
        dropout: float = 0.0,
        end: int | None = None,
        recompute: bool = False,
        base_width: int = 128,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        sizes = {"width": width, "depth": depth, "heads": heads, "kv_heads": kv_heads, "context": context}
        for name, count in (sizes | {"vocabulary": vocabulary}).items():
            parts.size(count, f"model.{name}")
        words = {
            "bias": (bias, BIASES), "norm_place": (norm_place, PLACES), "positions": (positions, POSITIONS),
            "head": (head, HEADS),
        }  # fmt: skip
        for name, (word, known) in words.items():
            if word not in known:
                raise ConfigError(f"unknown model.{name}={word!r}", hint=nearest(word, known))
        if head_width is None:
            head_width = width // heads
            if width % heads:
                hint = f"try model.width={head_width * heads} or {(head_width + 1) * heads}"
                raise ConfigError(f"model.width={width} is not divisible by model.heads={heads}", hint=hint)
        if heads % kv_heads:
            hint = f"take one of {[n for n in range(1, heads + 1) if heads % n == 0]}"
            raise ConfigError(f"model.kv_heads={kv_heads} does not divide model.heads={heads}", hint=hint)
        if positions == "rope" and parts.size(head_width, "model.head_width") % 2:
            what = f"model.head_width={head_width} is odd, and rotary positions turn pairs"
            raise ConfigError(what, hint="choose model.width and model.heads so that width / heads is even")
        if window is not None:
            parts.size(window, "model.window")
        if rope_scaling and positions != "rope":
            raise ConfigError(f"model.rope_scaling is not for model.positions={positions!r}", hint="leave one out")
        spec = FFNSpec(activation="swiglu", bias=False) if ffn is None else ffn
        self.base_width = parts.size(base_width, "model.base_width") if spec.init == "mup" else None
        if spec.init in ("auto", "mup") and not is_own(spec.kind):
            spec = spec.model_copy(update={"init": "depth_scaled"})
        self.vocabulary, self.width, self.heads, self.kv_heads, self.head_width = (
            vocabulary, width, heads, kv_heads, head_width,
        )  # fmt: skip
        self.hidden_width, self.context, self.tied = hidden, context, tied
        self.norm_kind, self.norm_place, self.norm_eps, self.bias = norm_kind, norm_place, norm_eps, bias
        self.positions, self.rope_base, self.rope_scaling = positions, rope_base, dict(rope_scaling or {}) or None
        self.qk_norm, self.causal, self.window, self.end = qk_norm, causal, window, end
        self.head_kind, self.types, self.classes = head, types, classes
        self.ffn_spec, self.recompute = spec, recompute
        self.embedding = _embedding(vocabulary, width, generator)
        self.position_embedding = _embedding(context, width, generator) if positions == "learned" else None
        self.type_embedding = _embedding(types, width, generator) if types else None
        self.dropout = branch_dropout(dropout)
        post = norm_place == "post"
        self.embedding_norm = norm(norm_kind, width, norm_eps) if post else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                Attention(
                    width, heads, kv_heads, head_width,
                    bias=bias, qk_norm=qk_norm, eps=norm_eps, depth=2 * depth, generator=generator,
                ),
                build_ffn(spec, width, hidden, depth=2 * depth, generator=generator),
                (
                    norm(norm_kind, width, norm_eps, into_products=not post),
                    norm(norm_kind, width, norm_eps, into_products=not (post or is_own(spec.kind))),
                ),
                post,
                is_own(spec.kind),
                dropout,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.Identity() if post else norm(norm_kind, width, norm_eps)
        self.pooler = Linear(width, width, generator=generator) if pooler else None
        self.head: nn.Module
        match head:
            case "tokens":
                self.head = self._matrix(generator)
            case "masked":
                last = norm(norm_kind, width, norm_eps)
                self.head = MaskedHead(self._matrix(generator), spec.activation, last, generator)
            case "classes":
                self.head = Linear(width, parts.size(classes or 0, "model.classes"), not causal, generator=generator)
            case "none":
                self.head = nn.Identity()
        if self.base_width is not None:
            gain = self.last_norm.weight
            assert isinstance(gain, Tensor)
            nn.init.constant_(gain, self.base_width / width)
        self._turns: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def forward(
        self, ids: Tensor, documents: Tensor | None = None, *, lengths: Lengths = None, types: Tensor | None = None
    ) -> Tensor:  # (B, T) -> (B, T, V), or (B, C)
        h = self.hidden(ids, documents, lengths=lengths, types=types)
        if self.head_kind == "classes":
            h = self.summary(h, lengths)
        y: Tensor = self.head(h)
        return y

    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        *,
        lengths: Lengths = None,
        types: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:  # (B, T) -> (B, T, W)
        """The last states: what `head` is applied to.

        `positions` (B, T) are those that were learned, where they aren't a row's own; rotary ones turn by differences
        alone, so that `documents` suffice for texts that share a row.
        """
        self.check(ids)
        x = self.embed(ids, torch.arange(ids.shape[1], device=ids.device) if positions is None else positions, types)
        if documents is None and self.end is not None:
            documents = documents_of(ids, self.end)
        documents = self._apart(ids, documents, lengths)
        sight, turn = Sight(self.causal, self.window, documents), self.turn(ids.shape[1], ids.device)
        for block in self.each_block():
            attention = partial(block.attention, turn=turn, sight=sight)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, attention, use_reentrant=False)
            else:
                x = block(x, attention)
        return self.norm(x)

    def summary(self, h: Tensor, lengths: Lengths = None) -> Tensor:  # (B, T, W) -> (B, W)
        """The state that stands for a row: its last one, or of an encoder the first one, through the pooler if any."""
        if not self.causal:
            return h[:, 0] if self.pooler is None else torch.tanh(self.pooler(h[:, 0]))
        if lengths is None:
            return h[:, -1]
        return h[torch.arange(len(h), device=h.device), torch.as_tensor(lengths, device=h.device) - 1]

    def _apart(self, ids: Tensor, documents: Tensor | None, lengths: Lengths) -> Tensor | None:
        """Documents in which what fills up a row is another one; a causal model's tokens don't see it anyway."""
        if lengths is None or self.causal:
            return documents
        rows, tokens = ids.shape
        lengths = torch.as_tensor(lengths, device=ids.device)
        if lengths.shape != (rows,) or not 1 <= int(lengths.min()) <= int(lengths.max()) <= tokens:
            what = f"lengths {lengths.tolist()} don't fit token ids of shape {tuple(ids.shape)}"
            raise DataError(what, hint=f"give {rows} numbers from 1 to {tokens}")
        if int(lengths.min()) == tokens:
            return documents
        filled = torch.arange(tokens, device=ids.device) >= lengths[:, None]
        return filled.long() if documents is None else documents.masked_fill(filled, -1)

    def embed(
        self, ids: Tensor, positions: Tensor, types: Tensor | None = None
    ) -> Tensor:  # (B, T), (T,) or (B, T) -> (B, T, W)
        """The first block's input."""
        x = self.embedding(ids)
        added = None if self.position_embedding is None else self.position_embedding(positions)
        if self.type_embedding is not None:
            kind = self.type_embedding.weight[0] if types is None else self.type_embedding(types)
            added = kind if added is None else added + kind
        return self.dropout(self.embedding_norm(x if added is None else x + added))

    def _matrix(self, generator: Generator | None) -> nn.Module:
        """The output matrix, alone."""
        return TiedHead(self.embedding) if self.tied else _head(self.width, self.vocabulary, generator)

    def turn(self, tokens: int, device: torch.device) -> Turn:
        """Cosines and sines of the first `tokens` positions, kept for the next call."""
        if self.positions != "rope":
            return None
        key = tokens, device
        if key not in self._turns:
            with torch.inference_mode(False):  # else what an evaluation made could not be trained with
                positions = torch.arange(tokens, device=device)
                self._turns = {key: tables(positions, self.head_width, self.rope_base, self.rope_scaling)}
        return self._turns[key]

    def each_block(self) -> Iterator["Block"]:
        """The blocks by their type, which a ModuleList forgets."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    @property
    def last_norm(self) -> nn.Module:
        """The norm whose result the output matrix takes."""
        *_, last = self.each_block()
        return last.ffn_norm if last.post else self.norm

    @property
    def growth(self) -> dict[str, Growth]:
        """How far each parameter is from the base width; empty unless it starts by mup.

        The embedding grows in what it gives, and so does an output matrix: its own growth in inputs is made up for by
        the last norm's gain, which therefore counts as a parameter with as many inputs.
        """
        if self.base_width is None:
            return {}
        wider = self.width / self.base_width
        found = {name: Growth(1.0, wider) for name, _ in self.named_parameters()}
        for prefix, module in self.named_modules():
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if module is self.last_norm:
                    found[name] = Growth(wider, 1.0)
                elif prefix.endswith(("q_norm", "k_norm")):
                    found[name] = Growth()
                elif prefix.startswith("blocks.") and parameter.ndim > 1:
                    found[name] = Growth(wider, wider)
        return found

    @property
    def head_weight(self) -> Tensor:
        """The output matrix (V, W), the embedding's where they are tied. Raises ConfigError where that isn't all."""
        if self.head_kind != "tokens":
            what = f"a head of kind {self.head_kind!r} is no matrix that gives tokens from the last states"
            raise ConfigError(what, hint="call the model, or its `head`")
        weight: Any = self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def settings(self) -> dict[str, Any]:
        """What `build` makes the same network of, as plain JSON values; its numbers apart."""
        spec = self.ffn_spec.model_dump() | ({} if self.base_width is None else {"init": "mup"})
        names = ("vocabulary", "width", "heads", "kv_heads", "head_width", "norm_kind", "norm_place", "norm_eps")
        more = ("positions", "context", "rope_base", "rope_scaling", "bias", "qk_norm", "causal", "window", "tied")
        last = ("classes", "types", "end", "recompute")
        found = {name: getattr(self, name) for name in (*names, *more, *last)}
        found |= {"depth": len(self.blocks), "hidden": self.hidden_width, "ffn": spec, "head": self.head_kind}
        found |= {"pooler": self.pooler is not None, "dropout": self.dropout.p}
        return found | ({} if self.base_width is None else {"base_width": self.base_width})

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def flops(self, tokens: int | None = None) -> int:
        """Of one token's forward pass in rows of so many tokens (not given: `context`), products only.

        2 for each multiply-add; training takes three times as many. A token meets every matrix once, and half of its
        row's keys where the model is causal. A feed-forward layer of one's own is counted by its matrices.
        """
        tokens = tokens or self.context
        keys = min(tokens, self.window or tokens) / (2 if self.causal else 1)
        attention = 4 * self.heads * self.head_width * keys
        parts = (self.blocks, self.head)
        matrices = sum(p.numel() for part in parts for p in part.parameters() if p.ndim > 1)
        return 2 * matrices + round(len(self.blocks) * attention)

    def check(self, ids: Tensor) -> None:
        """Raises DataError for ids that this model can't read."""
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
            what = f"the model takes token ids (B, T) as whole numbers, not {ids.dtype} of shape {tuple(ids.shape)}"
            raise DataError(what, hint="encode the text first, one row for each text")
        if self.positions == "learned" and ids.shape[1] > self.context:
            what = f"a row of {ids.shape[1]} tokens is longer than the {self.context} positions that were learned"
            raise DataError(what, hint="shorten the row, or train with positions='rope'")


def _head(width: int, vocabulary: int, generator: Generator | None) -> nn.Linear:
    layer = nn.Linear(width, vocabulary, bias=False)
    nn.init.normal_(layer.weight, std=0.02, generator=generator)
    return layer


def _embedding(count: int, width: int, generator: Generator | None) -> nn.Embedding:
    layer = nn.Embedding(count, width)
    nn.init.normal_(layer.weight, std=0.02, generator=generator)
    return layer


def build(settings: Mapping[str, Any], *, empty: bool = False) -> Transformer:
    """The network that `Transformer.settings` tell of; `empty` on torch's meta device, to be filled by `load`.

    >>> model = Transformer(100, width=32, depth=2, heads=4, hidden=64)
    >>> build(model.settings).settings == model.settings
    True
    """
    values = dict(settings)
    values["ffn"] = FFNSpec(**values.get("ffn") or {})
    with torch.device("meta") if empty else nullcontext():
        return Transformer(values.pop("vocabulary"), **values)
