"""Why a classifier of texts answered as it did: what of the text carried the answer, and the examples it resembles."""

# K pieces of a text, R occurrences of n-grams, W width of its vector, M training texts that are kept, O outputs

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedfwd.checkpoint import Run, write_whole
from feedfwd.data.ngrams import is_unspaced, placed_ngrams
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.evaluate.scope import nearest
from feedfwd.models.bag import Bag
from feedfwd.recipes.console import Listener
from feedfwd.recipes.verbs import verb_of

if TYPE_CHECKING:
    from feedfwd.recipes.classifier import TextClassifier
    from feedfwd.recipes.goals import Goal

SHOWN = 6  # pieces for an answer, as many against it
LONG = 160  # characters of a piece or a text that are shown
LITTLE = 0.1  # of the strongest character's weight, below which one of a script without spaces tells next to nothing
TRIES = 100  # pieces that are left out one after the other
PUNCTUATION = '.,;:!?"()[]{}<>«»„“”‘’…。，、；：！？（）《》'
SIMILAR = 3
TOLD = 5  # texts of a file


@dataclass(frozen=True)
class Memory:
    """Training texts with their vectors (M, W) and targets, class numbers (M,) where each has one label, kept beside
    the weights."""

    vectors: Tensor
    labels: Tensor
    texts: tuple[str, ...]

    @staticmethod
    def file(run: Run) -> Path:
        return run.path / "memory.safetensors"

    def save(self, run: Run) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in self.texts]
        tensors = {
            "vectors": self.vectors.half().contiguous(),
            "labels": self.labels.contiguous(),
            "text": torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8),
            "lengths": torch.tensor([len(text) for text in encoded]),
        }
        write_whole(self.file(run), lambda path: save_file(tensors, path))

    @classmethod
    def load(cls, run: Run) -> "Memory | None":
        """None where a run kept none."""
        if not cls.file(run).is_file():
            return None
        try:
            found = load_file(cls.file(run))
            whole, ends = bytes(found["text"].numpy()), found["lengths"].cumsum(0).tolist()
            starts = [0, *ends]
            texts = [whole[a:b].decode("utf-8", "surrogatepass") for a, b in zip(starts, ends, strict=False)]
            return cls(found["vectors"].float(), found["labels"], tuple(texts))
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            raise RunError(f"{cls.file(run)} can't be read ({error})", hint="train again, or delete it") from None


Carried = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """What of a text carried one answer: a class, one of several labels, or a number.

    `carried`: (piece of the text, by how much it raises what decides), the largest first; below zero it speaks against
    the answer. What decides is a class's logit above the mean of all classes', a label's own logit, or the number. For
    a bag without hidden layers the pieces and the bias add up to it. `ngrams`: the same of each n-gram of a bag.
    """

    answer: str
    probability: float | None  # None: of a number
    carried: Carried
    ngrams: Carried = ()

    def lines(self) -> list[str]:
        """For a person to read."""
        sure = "" if self.probability is None else f" ({self.probability:.1%})"
        words = ("for it", "against") if self.probability is not None else ("raised by", "lowered by")
        ahead, behind = [c for c in self.carried if c[1] > 0], [c for c in reversed(self.carried) if c[1] < 0]
        found = [f"{self.answer}{sure}"]
        for word, pieces in zip(words, (ahead, behind), strict=True):
            if pieces:
                said = (f"{_short(piece)!r} {_signed(weight)}" for piece, weight in pieces[:SHOWN])
                found.append(f"  {word}: " + ", ".join(said))
        return found


@dataclass(frozen=True, slots=True)
class Explanation:
    """A reason for each label that was given, or for the one answer; and `similar`: (training text, its label, cosine),
    the nearest first."""

    reasons: tuple[Reason, ...]
    similar: tuple[tuple[str, str, float], ...]

    @property
    def answer(self) -> str:
        return self.reasons[0].answer

    @property
    def probability(self) -> float | None:
        return self.reasons[0].probability

    @property
    def carried(self) -> Carried:
        return self.reasons[0].carried

    def lines(self) -> list[str]:
        """For a person to read."""
        found = [line for reason in self.reasons for line in reason.lines()]
        return found + [f"  like {cosine:.2f}: {_short(text)!r} → {label}" for text, label, cosine in self.similar]


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 1] + "…"


def _signed(weight: float) -> str:
    """
    >>> _signed(0.254), _signed(-12.5), _signed(0.00123)
    ('+0.25', '-12.50', '+0.0012')
    """
    return f"{weight:+.2f}" if abs(weight) >= 0.01 else f"{weight:+.2g}"


# --- what decides -----------------------------------------------------------------------------------------------------

Decides = Callable[[Tensor], Tensor]  # outputs (K, O) -> (K,)


def _asked(goal: "Goal", answer: Any) -> list[tuple[str, float | None, Decides]]:
    """Each answer in words, how sure it is, and the number that decided."""
    if goal.kind == "number":
        scale = float(getattr(goal, "std", 1.0))
        return [(f"{float(answer):.6g}", None, lambda z: scale * z[:, 0])]
    best = int(answer.argmax())
    if goal.kind == "label":
        return [(goal.classes[best], float(answer[best]), lambda z: z[:, best] - z.mean(1))]
    given = sorted((c for c in range(len(answer)) if answer[c] >= 0.5), key=lambda c: -float(answer[c]))
    words = "" if given else "no label; likeliest is "
    return [
        (words + goal.classes[c], float(answer[c]), lambda z, c=c: z[:, c])  # type: ignore[misc]
        for c in given or [best]
    ]


def explain(classifier: "TextClassifier", text: str) -> Explanation:
    """The answer to a text, what carried it, and the training texts nearest to it.

    A bag's n-grams: gradient × input, exact where it has no hidden layer; shared out among the characters that they
    cover and added up over words. Of any other network the words: how far the answer falls when one is left out.
    """
    features, outputs = classifier.read(classifier.rows([text]))
    reasons = []
    carried = _of_bag if isinstance(classifier.model, Bag) else _left_out
    for name, sure, decides in _asked(classifier.goal, classifier.answered(outputs)[0]):
        pieces, grams = (tuple(sorted(found, key=lambda c: -c[1])) for found in carried(classifier, text, decides))
        reasons.append(Reason(name, sure, pieces, grams))
    similar: list[tuple[str, str, float]] = []
    if (memory := classifier.memory) is not None:
        cosines, places = nearest(features, memory.vectors, SIMILAR)
        for cosine, place in zip(cosines[0].tolist(), places[0].tolist(), strict=True):
            similar.append((memory.texts[place], classifier.goal.shown(memory.labels[place]), cosine))
    return Explanation(tuple(reasons), tuple(similar))


Pieces = list[tuple[str, float]]


def _of_bag(classifier: "TextClassifier", text: str, decides: Decides) -> tuple[Pieces, Pieces]:
    bag, b = classifier.model, classifier.config.bag
    assert isinstance(bag, Bag)
    folded, starts, ends, bucket_R = placed_ngrams(
        text, b.buckets, words=b.words, chars=(b.shortest, b.longest), digits=b.digits
    )
    if not len(starts):
        return [], []
    found_K, first_K, of_R, times_K = np.unique(bucket_R, return_index=True, return_inverse=True, return_counts=True)
    bucket_K = torch.from_numpy(found_K).to(bag.weights.device)
    with torch.enable_grad():
        h = bag.bag(bucket_K[None]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(decides(bag.eval().mlp(h)).sum(), h)
    w_K = bag.weights[bucket_K]
    w_K = w_K / w_K.square().sum().sqrt().clamp(min=1e-6)
    part_K = (w_K * (bag.embedding.weight[bucket_K].detach() @ slope[0])).double().cpu().numpy()
    grams = [(folded[starts[i] : ends[i]], float(part)) for i, part in zip(first_K, part_K, strict=True)]
    # each occurrence bears its share, and of that each character that is no space
    there = np.array([character != " " for character in folded], float)
    before = np.concatenate([[0.0], there.cumsum()])
    share_R = (part_K / times_K)[of_R] / np.maximum(before[ends] - before[starts], 1)
    steps = np.bincount(starts, share_R, len(folded) + 1) - np.bincount(ends, share_R, len(folded) + 1)
    return merged(folded, steps.cumsum()[:-1] * there), grams


def merged(folded: str, weights: np.ndarray) -> Pieces:
    """Characters' weights by the words they stand in, a repeated word once; punctuation counts to its word.

    Of a script without spaces, neighbours of one sign are a piece, and those that tell next to nothing are another.

    >>> merged(" a bc, bc", np.array([0, 1.0, 0, 2.0, 1.0, 0.5, 0, 1.0, 1.0]))
    [('a', 1.0), ('bc', 5.5)]
    >>> merged("酒店很好", np.array([0.01, -0.01, 0.5, 0.6]))
    [('酒店', 0.0), ('很好', 1.1)]
    """
    little = LITTLE * float(np.abs(weights).max(initial=0.0))
    found: dict[str, float] = {}
    key, start = None, 0
    keys = []
    for character, weight in zip(folded, weights, strict=True):
        if character == " ":
            keys.append(" ")
        else:
            sign = "=" if abs(weight) < little else "+" if weight > 0 else "-"
            keys.append(sign if is_unspaced(character) else "word")
    for i, now in enumerate([*keys, None]):
        if now != key:
            if key not in (None, " "):
                piece = folded[start:i].strip(PUNCTUATION) or folded[start:i]
                found[piece] = found.get(piece, 0.0) + float(weights[start:i].sum())
            key, start = now, i
    return list(found.items())


def _left_out(classifier: "TextClassifier", text: str, decides: Decides) -> tuple[Pieces, Pieces]:
    """Without one word after the other; of a long text without some words at a time."""
    words = text.split() if len(text.split()) > 1 else list(text)  # a text without spaces by its characters
    joint = " " if len(text.split()) > 1 else ""
    size = max(1, -(-len(words) // TRIES))
    parts = [words[i : i + size] for i in range(0, len(words), size)]
    without = [joint.join(words[: i * size] + words[(i + 1) * size :]) for i in range(len(parts))]
    number_K = decides(classifier.outputs(classifier.rows([text, *without])))
    return list(zip(map(joint.join, parts), (number_K[0] - number_K[1:]).tolist(), strict=True)), []


def explain_run(path: Path, source: str, out: Path | None, listener: Listener) -> None:
    """`feedfwd predict RUN TEXT --explain`, or of the first texts of a file."""
    from feedfwd.recipes.classifier import TextClassifier
    from feedfwd.recipes.labelled import texts_of

    if verb_of(path) != "finetune":
        raise DataError(f"{path} is no classifier of texts", hint="--explain is for runs of `feedfwd finetune`")
    if out is not None:
        raise ConfigError(f"--explain is for the screen, not for --out {out}", hint="leave one out")
    classifier = TextClassifier.load(path)
    texts, _, notes = texts_of(source, classifier.config.text, classifier.config.target)
    for note in notes:
        listener.say(f"note: {note}")
    for text in texts[:TOLD]:
        if len(texts) > 1:
            listener.say(f"{text!r}:")
        for line in classifier.explain(text).lines():
            listener.say(line)
    if len(texts) > TOLD:
        listener.say(f"these are the first {TOLD} of {len(texts):,} texts; give another one by itself")
