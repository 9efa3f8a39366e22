"""Why a classifier of texts answered as it did: what of the text carried the answer, and the examples it resembles."""

# K pieces of a text, W width of its vector, M training texts that are kept

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedfwd.checkpoint import Run, write_whole
from feedfwd.data.ngrams import named_ngrams
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.evaluate.scope import nearest
from feedfwd.models.bag import Bag
from feedfwd.recipes.console import Listener
from feedfwd.recipes.verbs import verb_of

if TYPE_CHECKING:
    from feedfwd.recipes.classifier import TextClassifier

SHOWN = 6  # pieces for an answer, as many against it
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


@dataclass(frozen=True, slots=True)
class Explanation:
    """`carried`: (piece of the text, by how much it raises the answer's logit above the mean of all classes').

    The largest first; below zero it speaks against the answer. For a bag without hidden layers all pieces and the
    bias add up to that logit; `similar`: (training text, its label, cosine), the nearest first.
    """

    answer: str
    probability: float
    carried: tuple[tuple[str, float], ...]
    similar: tuple[tuple[str, str, float], ...]

    def lines(self) -> list[str]:
        """For a person to read."""
        found = [f"{self.answer} ({self.probability:.1%})"]
        ahead, behind = [c for c in self.carried if c[1] > 0], [c for c in reversed(self.carried) if c[1] < 0]
        for word, pieces in (("for it", ahead[:SHOWN]), ("against", behind[:SHOWN])):
            if pieces:
                found.append(f"  {word}: " + ", ".join(f"{piece!r} {weight:+.2f}" for piece, weight in pieces))
        return found + [f"  like {cosine:.2f}: {text!r} → {label}" for text, label, cosine in self.similar]


def explain(classifier: "TextClassifier", text: str) -> Explanation:
    """The answer to a text, what carried it, and the training texts nearest to it.

    A bag's n-grams: gradient × input, exact where it has no hidden layer. Of any other network the words: how far the
    answer falls when one is left out.
    """
    if classifier.goal.kind != "label":
        raise DataError("only one label a text can be explained", hint="this run answers with something else")
    rows = classifier.rows([text])
    answer = classifier.answers(rows)[0]
    best = int(answer.argmax())
    carried = (_of_bag if isinstance(classifier.model, Bag) else _left_out)(classifier, text, best)
    carried.sort(key=lambda c: -c[1])
    similar: list[tuple[str, str, float]] = []
    if (memory := classifier.memory) is not None:
        cosines, places = nearest(classifier.features(rows), memory.vectors, SIMILAR)
        for cosine, place in zip(cosines[0].tolist(), places[0].tolist(), strict=True):
            similar.append((memory.texts[place], classifier.classes[int(memory.labels[place])], cosine))
    return Explanation(classifier.classes[best], float(answer[best]), tuple(carried), tuple(similar))


def _of_bag(classifier: "TextClassifier", text: str, best: int) -> list[tuple[str, float]]:
    bag, b = classifier.model, classifier.config.bag
    assert isinstance(bag, Bag)
    names: dict[int, str] = {}
    for piece, bucket in named_ngrams(text, b.buckets, words=b.words, chars=(b.shortest, b.longest)):
        names.setdefault(bucket, piece)  # words come first, and say most
    bucket_K = torch.tensor(list(names), dtype=torch.int64, device=bag.weights.device)
    if not names:
        return []
    with torch.enable_grad():
        h = bag.bag(bucket_K[None]).detach().requires_grad_()
        z = bag.eval().mlp(h)[0]
        (slope,) = torch.autograd.grad(z[best] - z.mean(), h)
    w_K = bag.weights[bucket_K]
    w_K = w_K / w_K.square().sum().sqrt().clamp(min=1e-6)
    part_K = w_K * (bag.embedding.weight[bucket_K].detach() @ slope[0])
    return list(zip(names.values(), part_K.tolist(), strict=True))


def _left_out(classifier: "TextClassifier", text: str, best: int) -> list[tuple[str, float]]:
    words = text.split() if len(text.split()) > 1 else list(text)  # a text without spaces by its characters
    joint = " " if len(text.split()) > 1 else ""
    without = [joint.join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    z_KC = classifier.outputs(classifier.rows([text, *without]))
    ahead = z_KC[:, best] - z_KC.mean(1)
    return list(zip(words, (ahead[0] - ahead[1:]).tolist(), strict=True))


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
