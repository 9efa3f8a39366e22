"""A Transformer with a head: texts as vectors, whatever they share a batch with."""

import pytest
import torch
import torch.nn.functional as F

from feedfwd.data.ragged import ALIKE, PAD, Ragged, RaggedBatches
from feedfwd.errors import ConfigError
from feedfwd.ffn import FFNSpec
from feedfwd.models.bag import Bag
from feedfwd.models.encoder import POOLINGS, Encoder
from feedfwd.models.transformer import Transformer
from feedfwd.train.rows import RowAdam


def encoder(pooling: str = "mean", *, causal: bool = False, **more: object) -> Encoder:
    torch.manual_seed(0)
    body = Transformer(40, width=16, depth=2, heads=2, hidden=24, causal=causal, **more)  # type: ignore[arg-type]
    return Encoder(body, 3, pooling=pooling).eval()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_is_invisible(pooling: str, causal: bool) -> None:
    model = encoder(pooling, causal=causal)
    short, long = torch.tensor([[7, 8, 9]]), torch.tensor([[3, 4, 5, 6, 7, 8, 9]])
    both = torch.cat([torch.nn.functional.pad(short, (0, 4), value=PAD), long])
    with torch.no_grad():
        torch.testing.assert_close(model(both), torch.cat([model(short), model(long)]), atol=1e-6, rtol=1e-5)
        assert model.embed(both).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_the_backbones_own_head_and_pooler_are_taken_off() -> None:
    body = Transformer(
        40,
        width=16,
        depth=1,
        heads=2,
        hidden=24,
        causal=False,
        head="masked",
        pooler=True,
        ffn=FFNSpec(activation="gelu"),
        tied=False,
    )
    model = Encoder(body, 2)
    assert not any(".head." in f".{name}" for name in dict(model.backbone.named_parameters()))
    assert model.backbone.settings["head"] == "none" and not model.backbone.settings["pooler"]


def test_an_unknown_pooling_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="mean"):
        encoder("meen")


def test_an_update_touches_the_tokens_of_its_batch_alone() -> None:
    model = encoder()
    model.backbone.embedding.sparse = True
    before = model.backbone.embedding.weight.detach().clone()
    adam = RowAdam(model.named_parameters(), lr=0.01, rate=lambda name: 0.5 if name.startswith("backbone") else 1.0)
    model(torch.tensor([[7, 8], [9, PAD]])).sum().backward()
    adam.step()
    assert (model.backbone.embedding.weight != before).any(1).nonzero().flatten().tolist() == [7, 8, 9]
    assert sorted({group["lr"] for group in adam.param_groups}) == [0.005, 0.01]


def test_batches_of_about_one_length_are_filled_up_little() -> None:
    lengths = torch.randint(3, 60, (2000,), generator=torch.Generator().manual_seed(0))
    rows = Ragged(torch.ones(int(lengths.sum()), dtype=torch.int32), lengths)
    stream = RaggedBatches(rows, torch.zeros(2000), 32, alike=ALIKE)
    seen = [next(stream).inputs for _ in range(stream.batches_per_epoch)]
    assert sum(x.numel() for x in seen) < 1.06 * int(lengths.sum())


def test_a_texts_vector_stands_behind_its_outputs_in_training_where_a_loss_asks_for_it() -> None:
    model, x = encoder().train(), torch.tensor([[5, 7, 9], [4, PAD, PAD]])
    outputs = model(x)
    model.shows_vectors = True
    shown = model(x)
    assert shown.shape == (2, outputs.shape[1] + model.width)
    torch.testing.assert_close(shown[:, : outputs.shape[1]], outputs)
    torch.testing.assert_close(shown[:, outputs.shape[1] :], model.features(x))
    assert model.eval()(x).shape == outputs.shape


def test_a_head_begins_where_scikit_learns_logistic_regression_ends() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(0)
    features, targets = 3 * torch.randn(60, 16) + 1, torch.arange(60) % 3
    model = encoder()
    model.begin_at_regression(features, targets)
    unit = F.normalize(features, dim=1)
    peer = linear.LogisticRegression(C=10, tol=1e-8, max_iter=1000).fit(unit.numpy(), targets.numpy())
    scale, head = features.norm(dim=1).mean(), model.mlp.head
    torch.testing.assert_close((scale * head.weight).double(), torch.tensor(peer.coef_).double(), atol=0.02, rtol=0.02)
    logits = F.linear(scale * unit, head.weight, head.bias)
    torch.testing.assert_close(
        logits.softmax(1).double(), torch.tensor(peer.predict_proba(unit)).double(), atol=2e-3, rtol=0
    )


def test_a_bag_answers_beside_it() -> None:
    """Trained each by itself, their mean in evaluation; tokens and n-grams of a row don't see each other."""
    torch.manual_seed(0)
    backbone = Transformer(50, width=8, depth=1, heads=2, hidden=16, causal=False)
    model = Encoder(backbone, 3, bag=Bag(64, 4, [], 3))
    x = torch.tensor([[5, 7, 9, 50 + 3, 50 + 63], [4, 50 + 0, PAD, PAD, PAD]])
    assert model(x).shape == (2, 2, 3)
    model.eval()
    alone = Encoder(backbone, 3)
    alone.mlp = model.mlp
    tokens, buckets = torch.tensor([[5, 7, 9], [4, PAD, PAD]]), torch.tensor([[3, 63], [0, PAD]])
    assert model.bag is not None
    expected = torch.stack([alone.eval()(tokens), model.bag(buckets)], 1)
    torch.testing.assert_close(model.both(x), expected)
    torch.testing.assert_close(model(x), expected.mean(1))
    torch.testing.assert_close(model.features(x), alone.features(tokens))


def test_a_model_and_its_bag_are_weighed_by_what_they_are_worth() -> None:
    torch.manual_seed(0)
    backbone = Transformer(20, width=8, depth=1, heads=2, hidden=16, causal=False)
    model = Encoder(backbone, 3, bag=Bag(16, 4, [], 3)).eval()
    x = torch.tensor([[5, 7, 20 + 3], [4, 20 + 9, PAD]])
    assert torch.allclose(model(x), model.both(x).mean(1))
    targets = torch.randint(0, 3, (500,))
    right = torch.nn.functional.one_hot(targets, 3) + 0.5 * torch.randn(500, 3)
    model.mix_by(torch.stack([10 * torch.randn(500, 3), right], 1), targets)
    noise, told = model.mix.tolist()
    assert noise < 0.02 * told and told > 1
    assert torch.allclose(model(x), noise * model.both(x)[:, 0] + told * model.both(x)[:, 1])
    assert torch.allclose(model.read(x)[1], model(x))
