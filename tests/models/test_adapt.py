"""How a pretrained model is adapted: what trains, where the adapters go, and that they come back."""

from typing import Any

import pytest
import torch
from torch import nn

from feedfwd.errors import ConfigError
from feedfwd.ffn import FFNSpec
from feedfwd.ffn.lora import adapter_state, lora_layers
from feedfwd.models.adapt import layer_rates, merge, prepare
from feedfwd.models.encoder import Encoder
from feedfwd.models.transformer import Transformer, build

IDS = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(0))
DENSE = FFNSpec(activation="gelu")
BERT: dict[str, Any] = {
    "norm_kind": "layer", "norm_place": "post", "positions": "learned", "bias": "all", "types": 2, "causal": False,
    "ffn": DENSE,
}  # fmt: skip


def made(**settings: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(60, **({"width": 32, "depth": 3, "heads": 4, "hidden": 48, "context": 16} | settings)).eval()


def stir(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in adapter_state(model).values():
            tensor.add_(0.05 * torch.randn_like(tensor))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_full_trains_all_but_frozen_tables() -> None:
    model = Encoder(made(**BERT), 5)
    done = prepare(model, "full")
    assert done.trained == done.total == sum(p.numel() for p in model.parameters())
    prepare(model, "full", frozen_embeddings=True)
    frozen = {name for name, _ in model.named_parameters()} - trainable(model)
    assert frozen == {f"backbone.{table}embedding.weight" for table in ("", "position_", "type_")}


def test_head_trains_what_stands_around_alone() -> None:
    model = Encoder(made(**BERT), 5)
    prepare(model, "head")
    assert trainable(model) and all(name.startswith("mlp.") for name in trainable(model))
    own = made(**BERT, head="classes", classes=3, pooler=True)
    prepare(own, "head")
    assert trainable(own) == {"head.weight", "head.bias", "pooler.weight", "pooler.bias"}
    with pytest.raises(ConfigError, match="nothing to train"):
        prepare(made(), "head")


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("settings", [{}, BERT], ids=["llama", "bert"])
def test_adapters_start_as_nothing_train_alone_and_merge(settings: dict[str, Any], method: str) -> None:
    model = made(**settings)
    before = model(IDS)
    done = prepare(model, method, rank=4)
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-4)
    assert trainable(model) == {f"{path}.{kind}.default" for path, layer in lora_layers(model) for kind in kinds(layer)}
    assert sum(map(len, done.matched.values())) == 3 * 6
    stir(model)
    adapted = model(IDS)
    assert (adapted - before).abs().max() > 1e-2
    names = set(made(**settings).state_dict())
    assert set(merge(model).state_dict()) == names
    torch.testing.assert_close(model(IDS), adapted, atol=1e-5, rtol=1e-4)
    assert merge(model) is model  # nothing left to merge


def kinds(layer: Any) -> list[str]:
    return ["lora_A", "lora_B", *(["lora_magnitude"] if layer.lora_magnitude else [])]


@pytest.mark.parametrize(
    ("targets", "paths"),
    [
        (["attention.q"], {"blocks.0.attention.q", "blocks.1.attention.q", "blocks.2.attention.q"}),
        (["ffn"], {f"blocks.{i}.ffn.{leaf}" for i in range(3) for leaf in ("gate_up", "down")}),
        (["blocks.1.attention.?"], {f"blocks.1.attention.{leaf}" for leaf in "qkv"}),
        (["attention"], {f"blocks.{i}.attention.{leaf}" for i in range(3) for leaf in ("q", "k", "v", "out")}),
    ],
)
def test_targets_by_our_names(targets: list[str], paths: set[str]) -> None:
    model = made(tied=False)
    done = prepare(model, "lora", targets=targets, rank=2)
    assert set().union(*done.matched.values()) == {path for path, _ in lora_layers(model)} == paths
    assert list(done.matched) == targets and str(len(paths)) in str(done)


def test_a_target_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'attention.qq' matches no linear map: did you mean 'attention\.q'"):
        prepare(made(), "lora", targets=["attention.qq"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lorra"}, "did you mean 'lora'"),
        ({"method": "head", "frozen_embeddings": True}, "freezes them anyway"),
        ({"method": "full", "targets": ["ffn"]}, "targets are for the methods lora and dora"),
        ({"method": "lora", "targets": []}, "targets is empty"),
    ],
)
def test_what_makes_no_sense_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(Encoder(made(), 2), **arguments)
    with pytest.raises(ConfigError, match="no Transformer"):
        prepare(nn.Linear(2, 2), "full")


def test_a_saved_model_with_adapters_is_made_anew_from_settings_and_weights() -> None:
    arguments = {"method": "dora", "targets": ["ffn", "attention.v"], "rank": 3, "alpha": 5.0}
    model = made(**BERT)
    settings = model.settings
    prepare(model, **arguments)
    stir(model)
    again = build(settings)
    prepare(again, **arguments)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(IDS), model(IDS))


def test_layers_further_down_learn_more_slowly() -> None:
    model = Encoder(made(**BERT), 2)
    rate = layer_rates(model, 0.5)
    found = {name: rate(name) for name, _ in model.named_parameters()}
    assert {found[name] for name in found if name.startswith("mlp.")} == {1.0}
    assert [found[f"backbone.blocks.{i}.ffn.up.weight"] for i in range(3)] == [0.25, 0.5, 1.0]
    assert found["backbone.embedding.weight"] == found["backbone.embedding_norm.bias"] == 0.125
    with pytest.raises(ConfigError, match="layer decay 0"):
        layer_rates(model, 0.0)


@pytest.mark.parametrize("settings", [{}, BERT], ids=["llama", "bert"])
def test_the_fused_feed_forward_serves_adapted_models_too(settings: dict[str, Any]) -> None:
    model = made(**settings)
    prepare(model, "lora", rank=4)
    x = torch.randn(2, 5, 32)
    for block in model.each_block():
        path = block.ffn.explain(x)  # type: ignore[operator]
        assert path.fast, str(path)
