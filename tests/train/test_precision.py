"""Precision: the rule, its reasons, and that nothing but the settings and the machine decides."""

import pytest
import torch
from torch import nn

from feedfwd.errors import ConfigError
from feedfwd.train import precision
from feedfwd.train.precision import FP32, choose, products

SMALL, LARGE = [(64, 784, 128), (64, 128, 128), (64, 128, 10)], [(1024, 512, 512)] * 3


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU with bf16 products, nothing forbidding them."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    return monkeypatch


def test_large_products_take_bf16_and_small_ones_dont(native: pytest.MonkeyPatch) -> None:
    assert choose("auto", "cpu", LARGE).name == "bf16"
    small = choose("auto", "cpu", SMALL)
    assert small.name == "fp32" and "2.5 million multiply-adds" in small.reason
    assert choose("bf16", "cpu", SMALL).reason == "asked for"
    assert choose("fp32", "cpu", LARGE).name == "fp32"


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize("limit", ["AVX2", "avx512_core"])
def test_a_limit_on_onednn_is_seen(native: pytest.MonkeyPatch, variable: str, limit: str) -> None:
    native.setenv(variable, limit)
    chosen = choose("auto", "cpu", LARGE)
    assert chosen.name == "fp32" and limit.upper() in chosen.reason
    assert "slow" in choose("bf16", "cpu", LARGE).reason


@pytest.mark.parametrize("limit", ["AVX512_CORE_BF16", "default", "unheard-of"])
def test_a_limit_that_leaves_bf16_is_none(native: pytest.MonkeyPatch, limit: str) -> None:
    native.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose("auto", "cpu", LARGE).name == "bf16"


def test_a_cpu_without_bf16_products(native: pytest.MonkeyPatch) -> None:
    native.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose("auto", "cpu", LARGE) == precision.Precision("fp32", "this CPU has no bf16 products")


def test_gpus() -> None:
    assert choose("auto", "mps", LARGE).name == "fp32"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        assert choose("auto", "cuda", SMALL).name == "bf16"


def test_products_read_the_matrices_and_leave_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    assert products(model, rows=7) == [(7, 8, 5), (7, 5, 2)]


def test_autocast_can_be_entered_again() -> None:
    context = precision.Precision("bf16", "").autocast()
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    for _ in range(2):
        with context:
            assert layer(x).dtype == torch.bfloat16
        assert layer(x).dtype == torch.float32
    with FP32.autocast():
        assert layer(x).dtype == torch.float32


def test_unknown() -> None:
    with pytest.raises(ConfigError, match="bf16"):
        choose("fp16", "cpu", LARGE)
