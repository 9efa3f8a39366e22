"""The bag of n-grams, and the optimizer that touches only its rows."""

import torch

from feedfwd.data.ragged import PAD
from feedfwd.models.bag import Bag
from feedfwd.train.rows import RowAdam

X = torch.tensor([[3, 5, 9], [3, 7, PAD], [PAD, PAD, PAD]])


def test_the_sum_is_that_of_the_formula_and_padding_counts_nothing() -> None:
    bag = Bag(16, 4, [8], 3)
    bag.weigh(torch.tensor([3, 5, 9, 3, 7]), texts=2)
    w, e = bag.weights, bag.embedding.weight
    assert torch.allclose(w[torch.tensor([3, 5, 0])], torch.tensor([3 / 3, 3 / 2, 3.0]).log() + 1)
    first = (w[3] * e[3] + w[5] * e[5] + w[9] * e[9]) / (w[3] ** 2 + w[5] ** 2 + w[9] ** 2).sqrt()
    found = bag.bag(X)
    assert torch.allclose(found[0], first, atol=1e-6) and torch.equal(found[2], torch.zeros(4))
    assert torch.allclose(bag.bag(X[1:2, :2])[0], found[1])


def test_without_a_width_ngrams_vote_for_the_classes() -> None:
    bag = Bag(1 << 16, 0, [], 3)
    assert bag.embedding.weight.shape == (1 << 16, 3) and not bag(X).any()  # a linear model begins at zero
    torch.nn.init.normal_(bag.embedding.weight)
    torch.nn.init.normal_(bag.mlp.bias)
    bag.weigh(torch.tensor([3, 5, 9, 3, 7]), texts=2)
    w, e = bag.weights, bag.embedding.weight
    second = (w[3] * e[3] + w[7] * e[7]) / (w[3] ** 2 + w[7] ** 2).sqrt() + bag.mlp.bias
    assert torch.allclose(bag(X)[1], second, atol=1e-6) and torch.equal(bag(X)[2], bag.mlp.bias)
    vectors, outputs = bag.read(X)
    assert torch.equal(outputs, bag(X)) and vectors.shape == (3, bag.width)
    shared = w[3] ** 2 / (w[[3, 5, 9]].norm() * w[[3, 7]].norm())  # the cosine of TF-IDF
    assert torch.allclose(vectors @ vectors.T, torch.tensor([[1, shared, 0], [shared, 1, 0], [0, 0, 0]]), atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    own = torch.randint(0, 1 << 16, (20, 300), generator=generator)
    own[:, :150] = own[0, :150]  # half of the n-grams are shared
    bag.weights.fill_(1)
    cosines = torch.nn.functional.cosine_similarity(bag.read(own)[0][:1], bag.read(own)[0][1:])
    assert abs(float(cosines.mean()) - 0.5) < 0.1


def test_an_update_touches_only_the_rows_of_its_ngrams() -> None:
    bag = Bag(16, 4, [8], 3)
    before = bag.embedding.weight.detach().clone()
    adam = RowAdam(bag.named_parameters(), lr=0.1)
    bag(X).sum().backward()
    adam.step()
    assert (bag.embedding.weight != before).any(1).nonzero().flatten().tolist() == [3, 5, 7, 9]


def test_rows_move_as_in_sparse_adam_and_the_rest_as_in_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = Bag(16, 4, [8], 3, std=0.1), Bag(16, 4, [8], 3, std=0.1)
    theirs.load_state_dict(ours.state_dict())
    adam = RowAdam(ours.named_parameters(), lr=0.05, weight_decay=0.1)
    sparse = torch.optim.SparseAdam([theirs.embedding.weight], lr=0.05)
    matrices = [p for p in theirs.mlp.parameters() if p.ndim > 1]
    biases = [p for p in theirs.mlp.parameters() if p.ndim < 2]
    dense = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}], lr=0.05
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randint(0, 16, (4, 3), generator=generator)
        for model, optimizers in ((ours, [adam]), (theirs, [sparse, dense])):
            model.zero_grad()
            model(x).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    for name, tensor in ours.state_dict().items():  # torch scales eps by the bias correction of the squares
        assert torch.allclose(tensor, theirs.state_dict()[name], atol=1e-4), name


def test_a_table_of_one_scale_moves_by_its_gradient_over_that_of_all_its_rows() -> None:
    table = torch.nn.Embedding(16, 4, sparse=True)
    rows = RowAdam(
        table.named_parameters(), lr=0.1, betas=(0.9, 0.5), eps=0.0, rate=lambda name: 0.2, alike=lambda name: True
    )
    expected, mean = table.weight.detach().clone(), 0.0
    for step, places in enumerate(([3, 5, 3], [5, 7]), start=1):
        g = torch.zeros(16, 4)
        for i, place in enumerate(places, start=1):
            g[place] += i * torch.arange(4.0)
        table.zero_grad()
        (table(torch.tensor(places)) * torch.arange(1, len(places) + 1)[:, None] * torch.arange(4.0)).sum().backward()
        rows.step()
        mean = 0.5 * mean + 0.5 * float(g[list(set(places))].square().mean())
        expected -= 0.02 * g / (mean / (1 - 0.5**step)) ** 0.5
    assert torch.allclose(table.weight, expected, atol=1e-6)
