"""How well a language model predicts text that it has not seen."""

import math
from collections.abc import Sequence

import torch

from feedfwd.data.batches import Transform
from feedfwd.data.packing import held_out_batches
from feedfwd.data.tokens import Tokens
from feedfwd.models.filling import Filling
from feedfwd.models.transformer import Transformer
from feedfwd.train.cross_entropy import counted, token_losses
from feedfwd.train.precision import FP32, Precision


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Loss per byte of text, in bits: comparable across tokenizers.

    >>> round(bits_per_byte(nats=693.147, n_bytes=1000), 3)
    1.0
    """
    return nats / math.log(2) / n_bytes


def text_scores(
    model: Transformer | Filling,
    tokens: Sequence[Tokens],
    row: int,
    batch_size: int,
    *,
    precision: Precision = FP32,
    every: int = 1,
    masking: Transform | None = None,
) -> dict[str, float]:
    """`loss` in nats a token, `bits_per_byte` and `perplexity` over all tokens, in rows that don't overlap.

    The ends of documents are predicted too, and count for no byte. With `every` only each so many-th batch is
    looked at, for an estimate. With `masking`, which draws the same tokens each time, they are those that it hides; its
    loss says nothing of the text's bytes, so `bits_per_byte` is left out.
    """
    device = model.head_weight.device
    nats, seen = torch.zeros((), dtype=torch.float64), 0.0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), precision.autocast():
            for i, batch in enumerate(held_out_batches(tokens, row, batch_size, transform=masking, device=device)):
                if i % every:
                    continue
                weights = torch.ones(batch.targets.shape, device=device) if batch.weights is None else batch.weights
                h_ND, targets_N, weights_N = counted(model.hidden(batch.inputs), batch.targets, weights)
                losses_N = token_losses(h_ND, model.head_weight, targets_N)
                nats += (losses_N * weights_N).double().sum().cpu()
                seen += float(weights_N.sum())
    finally:
        model.train(training)
    loss = float(nats) / seen
    scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if masking is None:
        n_bytes = max(1, sum(t.counts.bytes for t in tokens))
        scores["bits_per_byte"] = bits_per_byte(loss * sum(map(len, tokens)), n_bytes)
    return scores
