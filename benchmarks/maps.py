"""A linear map's three products, and the two of a feed-forward layer that bend what they add up, beside torch's.

    python benchmarks/maps.py              # only where the processor multiplies tiles (AMX)

As in a training, weights and tokens come from memory and not from the caches: a dozen sets of matrices take turns.
Weights are in fp32: torch's side takes a copy of W in bf16 first, and makes fp32 of ∂W, as autocast does, and its
layer is torch's product and the compiled pointwise pass. Both sides alternate in one process; a ratio is taken within
a round, and given as median (least … most).
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from feedfwd.ffn.kernels import maps, native

SETS, ROUNDS = 12, 9
PRODUCTS = [(448, 384, 1536), (448, 1536, 384), (448, 384, 384), (4096, 384, 2048), (4096, 1024, 384)]
LAYERS = [(448, 384, 1536, "gelu", False), (4096, 384, 1024, "silu", True)]  # tokens, width, hidden


def beside(
    title: str,
    ours: Callable[..., Any],
    torchs: Callable[..., Any],
    sets: list[tuple[Any, ...]],
    fresh: Callable[[], None] = lambda: None,
) -> None:
    """`fresh`, which isn't timed, puts right what the last side has overwritten."""
    times: dict[Callable[..., Any], list[float]] = {ours: [], torchs: []}
    for _ in range(ROUNDS):
        for side, spent in times.items():
            fresh()
            begun = time.perf_counter()
            for tensors in sets:
                side(*tensors)
            spent.append(1e3 * (time.perf_counter() - begun) / len(sets))
    ratios = sorted(b / a for a, b in zip(times[ours], times[torchs], strict=True))
    a, b = (statistics.median(spent) for spent in times.values())
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
    print(f"{title:42} {a:6.2f} ms, torch {b:6.2f} ms: {spread} times as fast", flush=True)


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def main() -> None:
    if reason := maps.lacks(bf16(maps.LEAST, 32)):
        raise SystemExit(f"nothing to measure: {reason}")
    for T, K, N in PRODUCTS:
        sets = [
            (torch.randn(N, K), bf16(T, K), bf16(T, N), bf16(T, N), bf16(T, K), torch.empty(N, K)) for _ in range(SETS)
        ]
        size = f"{T:,} tokens, {K:,} → {N:,}"
        beside(
            f"{size}, y", lambda w, x, dy, y, dx, dw: maps.linear(x, [w], [None], y),
            lambda w, x, dy, y, dx, dw: torch.mm(x, w.bfloat16().t(), out=y), sets,
        )  # fmt: skip
        beside(
            f"{size}, ∂x", lambda w, x, dy, y, dx, dw: maps.linear(dy, [w.t()], [None], dx),
            lambda w, x, dy, y, dx, dw: torch.mm(dy, w.bfloat16(), out=dx), sets,
        )  # fmt: skip
        beside(
            f"{size}, ∂W", lambda w, x, dy, y, dx, dw: maps.outer(dy, x, dw),
            lambda w, x, dy, y, dx, dw: dw.copy_(dy.t() @ x), sets,
        )  # fmt: skip
    for T, D, H, sigma, gated in LAYERS:
        passes, _ = native.passes(sigma, torch.bfloat16)
        assert passes is not None
        M = 2 * H if gated else H
        layers = [
            (torch.randn(M, D) / D**0.5, torch.randn(D, H), bf16(T, D), bf16(T, M), bf16(T, H)) for _ in range(SETS)
        ]
        forth = passes.gated_forward if gated else passes.dense_forward
        back = passes.gated_backward if gated else passes.dense_backward

        def forward(w: Any, down: Any, x: Any, z: Any, a: Any, forth: Any = forth) -> None:
            forth(torch.mm(x, w.bfloat16().t(), out=z), a, None)

        def backward(w: Any, down: Any, x: Any, z: Any, a: Any, back: Any = back) -> None:
            back(z, torch.mm(x, down.bfloat16(), out=a), None)

        def fresh(layers: Any = layers) -> None:
            for *_, z, _ in layers:
                z.normal_()

        size = f"{T:,} tokens, {D:,} → {H:,}, {sigma}{', gated' if gated else ''}"
        beside(size, lambda w, down, x, z, a, s=sigma: maps.bent(x, w, None, z, a, s), forward, layers)
        beside(
            f"{size}, back", lambda w, down, x, z, a, s=sigma: maps.bent_back(x, down, z, a, s), backward, layers, fresh
        )


if __name__ == "__main__":
    main()
