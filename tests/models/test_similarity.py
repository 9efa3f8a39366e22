"""Networks that compare texts."""

import torch
import torch.nn.functional as F

from feedfwd.data.ngrams import ngrams
from feedfwd.data.ragged import PAD
from feedfwd.models.similarity import BagVectors, PairReader, TextVectors
from feedfwd.models.transformer import Transformer


def tiny(**more) -> Transformer:
    settings = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "causal": False} | more
    return Transformer(60, **settings, generator=torch.Generator().manual_seed(0))


def test_rows_give_the_same_whatever_shares_their_batch():
    model = TextVectors(tiny()).eval()
    lengths = [1, 2, 3, 9, 2, 30, 4, 5, 1]
    rows = torch.full((9, 30), PAD)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randint(0, 60, (length,))
    whole = model(rows)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(9))
    for i, length in enumerate(lengths):
        torch.testing.assert_close(model(rows[i : i + 1, :length])[0], whole[i], rtol=1e-4, atol=1e-5)
    whole.sum().backward()  # through all groups


def test_a_ranker_starts_from_the_cosine_of_the_two_texts_states():
    body = tiny(types=2)
    model = PairReader(body).eval()
    first, second = torch.tensor([1, 5, 7]), torch.tensor([9, 4])
    row = torch.cat([first, second + 60])[None]
    types = torch.tensor([[0, 0, 0, 1, 1]])
    h = body.hidden(torch.cat([first, second])[None], types=types)[0]
    wanted = 20 * F.cosine_similarity(h[:3].mean(0), h[3:].mean(0), dim=0)
    torch.testing.assert_close(model(row)[0, 0], wanted)
    padded = F.pad(row, (0, 3), value=PAD)
    torch.testing.assert_close(model(padded), model(row))


def test_an_untrained_bag_is_about_tf_idf():
    texts = [f"{a} {b} card" for a in ("lost", "stolen", "new") for b in ("my", "your", "any")]
    rows = ngrams(texts, 1 << 14)
    model = BagVectors(1 << 14, 2048, generator=torch.Generator().manual_seed(0))
    model.weigh(rows.values, len(texts))
    with torch.no_grad():
        found = model(rows.padded(torch.arange(len(texts))))
    dense = torch.zeros(len(texts), 1 << 14)
    for i, row in enumerate(rows):
        dense[i, row.long()] = model.weights[row.long()]
    dense = F.normalize(dense, dim=1)
    assert float((found @ found.T - dense @ dense.T).abs().max()) < 0.1
    assert not BagVectors(16, 4)(torch.tensor([[PAD]])).any()
