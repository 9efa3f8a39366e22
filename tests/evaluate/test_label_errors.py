"""Wrong labels that were put in are found, and named with the class they came from."""

import numpy as np
import torch

from feedfwd.evaluate import label_errors


def test_flipped_labels_are_found_and_little_else():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, 2000)
    logits = generator.normal(size=(2000, 5))
    logits[np.arange(2000), truth] += 4
    logits[:, 3] -= 1  # a class that the model is never very sure of
    p = torch.softmax(torch.tensor(logits), 1).numpy()
    labels = truth.copy()
    flipped = generator.choice(2000, 60, replace=False)
    labels[flipped] = (truth[flipped] + generator.integers(1, 5, 60)) % 5
    found = label_errors(p, labels)
    places = {e.place for e in found}
    assert len(places & set(flipped)) >= 42
    assert len(places - set(flipped)) <= 40
    assert np.mean([e.place in set(flipped) for e in found[:30]]) > 0.9
    for e in found[:10]:
        assert e.given == labels[e.place] != e.likelier and e.probability_likelier > e.probability_given
    assert [e.place for e in label_errors(p, labels, 7)] == [e.place for e in found[:7]]


def test_a_class_without_examples_claims_nothing():
    p = np.array([[0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    assert [(e.place, e.likelier) for e in label_errors(p, [0, 1, 0])] == []
