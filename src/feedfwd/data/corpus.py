"""A corpus: documents from several sources, each text once, each source split by document before anything is learnt.

Opening reads everything once: to count, to find copies, to split. What that survey found is cached under a hash of the
files' bytes, so that opening an unchanged corpus again costs reading the bytes, and a changed one is never mistaken
for the old. Memory holds one piece of text and 16 bytes a document.
"""

# n documents

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from feedfwd.data.batches import derived_seed
from feedfwd.data.cache import cache_folder, key, read_json, write_json, write_whole
from feedfwd.data.documents import TEXT, ManyBroken, Piece, Tally, form_of, read_pieces
from feedfwd.data.sources import TextSource, find
from feedfwd.errors import DataError

Part = Literal["train", "validation"]
LEFT_OUT, TRAIN, VALIDATION, CUT = range(4)  # a document's fate
FORMAT = 2  # of the cached survey, and of what decides a document's fate


@dataclass
class Survey:
    """What reading the whole corpus once found. Counts are by source."""

    fates: np.ndarray  # (n,) uint8, in the order of reading
    documents: list[int]  # read, empty ones and copies included
    train_bytes: list[int]  # UTF-8
    validation_bytes: list[int]
    cut_at: list[int]  # bytes of a source's document that is cut which stay in training; 0: none is
    unused_files: list[int]  # numbers of the files that hold no text
    notes: list[str] = field(default_factory=list)


class Corpus:
    """Text from files, ready to be streamed as pieces of documents.

    Each source is split by itself, so that the scores tell of a small one too. A document is held out if a hash of its
    text and the seed falls below `validation`: a text stays on its side when others come and go. At least one document
    is on each side. A document with more than half of its source's text would unbalance either side, so it is cut: its
    last part is held out. A single document is the plainest case of this.

    `weights`, one a source, are only checked here: `PackedBatches` draws by them.
    Raises DataError where there is nothing to read, or too much that can't be read.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        validation: float = 0.1,
        seed: int = 0,
        column: str | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not sources:
            raise DataError("no text source was named", hint="name a file, a folder, stdlib, or owner/name of the hub")
        if weights is not None and (len(weights) != len(sources) or min(weights) <= 0):
            raise DataError(
                f"{len(weights)} weights for {len(sources)} sources, smallest {min(weights, default=0):g}",
                hint="give one positive weight for each source",
            )
        self.files: dict[Path, str] = {}  # hash of the content
        self.sources = tuple(self._that_can_be_read(find(source)) for source in sources)
        self.validation, self.seed, self.column = validation, seed, column
        self._states = {path: _state(path) for path in self._files()}
        contents = [[[form_of(path), self.files[path]] for path in source.files] for source in self.sources]
        self.fingerprint = key("corpus", FORMAT, contents, validation, seed, column)
        self.survey = self._cached_survey()

    @property
    def name(self) -> str:
        return "+".join(source.name for source in self.sources)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided in reading, for the user to know."""
        return (*(note for source in self.sources for note in source.notes), *self.survey.notes)

    def bytes_of(self, part: Part) -> int:
        """UTF-8 bytes of a part's text."""
        return sum(self.survey.train_bytes if part == "train" else self.survey.validation_bytes)

    def describe(self) -> str:
        """One line: how much text, and how it is split."""
        n = sum(self.survey.documents)
        train, held = self.bytes_of("train") / 1e6, self.bytes_of("validation") / 1e6
        return (
            f"{self.name}: {n:,} document{'s' * (n != 1)}, {train:,.1f} MB to train on, {held:,.1f} MB held out, "
            f"{self._cut_or_whole()}"
        )

    def _cut_or_whole(self) -> str:
        cut = int((self.survey.fates == CUT).sum())
        if cut > 1:
            return f"the ends of {cut} documents"
        return "the end of one document" if cut else "in whole documents"

    def pieces(self, part: Part, source: int | None = None) -> Iterator[Piece]:
        """The text of one part, of one source or of all in turn, always in the same order."""
        wanted = TRAIN if part == "train" else VALIDATION
        if source is None:
            for one in range(len(self.sources)):
                yield from self.pieces(part, one)
            return
        number, cut_at = sum(self.survey.documents[:source]), self.survey.cut_at[source]
        for path in self._readable(source):
            if form_of(path) in TEXT and self._fate(number, path) not in (wanted, CUT):
                number += 1  # the file's one document
                continue
            read = 0  # bytes of the current document
            for piece in read_pieces(path, self.column, Tally()):
                fate = self._fate(number, path)
                if fate == wanted:
                    yield piece
                elif fate == CUT:
                    head, tail = _cut(piece.text, cut_at - read)
                    before, read = read, read + len(piece.text.encode())
                    if part == "train" and before < cut_at:
                        yield Piece(head, last=read >= cut_at)
                    elif part == "validation" and (tail or piece.last):
                        yield Piece(tail, piece.last)
                if piece.last:
                    number, read = number + 1, 0
            self._check_unchanged(path)

    def texts(self, limit: int | None = None) -> Iterator[str]:
        """The training text, which is all that may be learnt from; with a limit in bytes, an even sample of it."""
        share = 1.0 if limit is None else min(1.0, limit / max(1, self.bytes_of("train")))
        for i, piece in enumerate(self.pieces("train")):
            if math.ceil((i + 1) * share) > math.ceil(i * share):
                yield piece.text

    def _that_can_be_read(self, source: TextSource) -> TextSource:
        """The source without files that can't be opened; DataError where it is one alone, or none can."""
        readable: list[Path] = []
        problems: list[DataError] = []
        for path in source.files:
            try:
                self.files[path] = _hash(path)
                readable.append(path)
            except DataError as error:
                problems.append(error)
        if not readable:
            raise problems[0]
        return replace(source, files=tuple(readable), notes=(*source.notes, *_left_out(problems)))

    # --- files ----------------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        return [path for source in self.sources for path in source.files]

    def _readable(self, source: int) -> list[Path]:
        first = sum(len(s.files) for s in self.sources[:source])
        return [p for i, p in enumerate(self.sources[source].files, first) if i not in self.survey.unused_files]

    def _fate(self, number: int, path: Path) -> int:
        if number >= len(self.survey.fates):
            raise _changed(path)
        return int(self.survey.fates[number])

    def _check_unchanged(self, path: Path) -> None:
        if _state(path) != self._states[path]:
            raise _changed(path)

    # --- the survey -----------------------------------------------------------------------------------------------

    def _cached_survey(self) -> Survey:
        folder = cache_folder() / "corpora" / self.fingerprint
        facts = read_json(folder / "survey.json")
        if facts is not None:
            try:
                return Survey(fates=np.load(folder / "fates.npy", allow_pickle=False), **facts)
            except (OSError, ValueError, TypeError):
                pass  # damaged: made again
        survey = self._take_survey()
        write_whole(folder / "fates.npy", lambda part: _save(part, survey.fates))
        write_json(folder / "survey.json", {k: v for k, v in asdict(survey).items() if k != "fates"})
        return survey

    def _take_survey(self) -> Survey:
        digests, sizes = array("Q"), array("Q")
        documents: list[int] = []
        unused: list[int] = []
        notes: list[str] = []
        number = 0
        for source in self.sources:
            before = len(digests)
            problems: list[DataError] = []
            columns: dict[str, int] = {}
            for path in source.files:
                tally, sound = Tally(), len(digests)
                try:
                    _digest(read_pieces(path, self.column, tally), digests, sizes)
                except DataError as error:
                    if len(source.files) == 1 or isinstance(error, ManyBroken):
                        raise
                    del digests[sound:], sizes[sound:]
                    unused.append(number)
                    problems.append(error)
                    tally = Tally()
                number += 1
                self._check_unchanged(path)
                if tally.guessed and tally.column is not None and tally.column != "text":
                    columns[tally.column] = columns.get(tally.column, 0) + 1
                if tally.broken:
                    notes.append(f"{path}: left out {tally.broken:,} of {tally.rows:,} rows ({tally.summary()})")
            notes += [f"{source.name}: took column {c!r} as text; data.column names another" for c in columns]
            documents.append(len(digests) - before)
            if len(problems) == len(source.files):
                what = f"none of the {len(problems):,} files of {source.name} holds text that can be read"
                raise DataError(f"{what} ({problems[0].message})", hint=problems[0].hint)
            notes += _left_out(problems)
        return self._decide(np.array(digests), np.array(sizes), documents, unused, notes)

    def _decide(
        self, digests: np.ndarray, sizes: np.ndarray, documents: list[int], unused: list[int], notes: list[str]
    ) -> Survey:
        kept = (sizes > 0) & ~_copies(digests, sizes)
        if not kept.any():
            what = f"{self.name} has no text" + (f" in column {self.column!r}" if self.column else "")
            raise DataError(what, hint="check the source: all its documents are empty")
        copies = int((sizes > 0).sum() - kept.sum())
        if copies:
            notes.append(f"left out {copies:,} exact cop{'y' if copies == 1 else 'ies'} of other documents")
        counts: dict[int, list[int]] = {TRAIN: [], VALIDATION: []}
        all_fates: list[np.ndarray] = []
        cuts: list[int] = []
        bounds = np.cumsum([0, *documents])
        for source, (begin, end) in zip(self.sources, pairwise(bounds.tolist()), strict=True):
            d, s = digests[begin:end], np.where(kept, sizes, 0)[begin:end]
            f, cut_at = split_documents(d, s, self.validation, self.seed)
            if cut_at:
                notes.append(f"one document holds more than half of the text of {source.name}: its end is held out")
            in_cut = int(s[f == CUT].sum())
            counts[TRAIN].append(int(s[f == TRAIN].sum()) + min(in_cut, cut_at))
            counts[VALIDATION].append(int(s[f == VALIDATION].sum()) + max(0, in_cut - cut_at))
            all_fates.append(f)
            cuts.append(cut_at)
        if not sum(counts[TRAIN]) or (self.validation > 0 and not sum(counts[VALIDATION])):
            raise DataError(
                f"{self.name} has {int(sizes[kept].sum()):,} bytes of text, too few to hold some out",
                hint="give more text",
            )
        fates = np.concatenate(all_fates)
        return Survey(fates, documents, counts[TRAIN], counts[VALIDATION], cuts, unused, notes)


def split_documents(digests: np.ndarray, sizes: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, int]:
    """Each document's fate, (n,) uint8, and where the one that is cut, if any, is; size 0 means left out.

    >>> fates, cut_at = split_documents(np.arange(3, dtype=np.uint64), np.array([0, 90, 10]), share=0.1, seed=0)
    >>> (fates == CUT).tolist(), cut_at
    ([False, True, False], 81)
    """
    kept = sizes > 0
    fates = np.where(kept, TRAIN, LEFT_OUT).astype(np.uint8)
    if share == 0 or not kept.any():
        return fates, 0
    draw = _mixed(digests, seed)
    held = kept & (draw < share)
    largest = int(sizes.argmax())
    if 2 * int(sizes[largest]) > int(sizes.sum()):
        cut_at = int(int(sizes[largest]) * (1 - share))
        fates[held] = VALIDATION
        fates[largest] = CUT if cut_at else TRAIN  # of a byte or two nothing can be held out
        return fates, cut_at
    if not held.any():
        held[np.where(kept, draw, 2.0).argmin()] = True
    elif held.sum() == kept.sum():
        held[np.where(kept, draw, -1.0).argmax()] = False
    fates[held] = VALIDATION
    return fates, 0


def _mixed(digests: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) from each digest and the seed: splitmix64's finalizer (Steele et al. 2014)."""
    x = digests ^ np.uint64(derived_seed(seed, 3) << 32 | derived_seed(seed, 4))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def _left_out(problems: Sequence[DataError]) -> list[str]:
    """The files that hold no text, the first named and all counted."""
    notes = [f"left out: {problem.message}" for problem in problems[:3]]
    if len(problems) > 3:
        notes.append(f"left out: {len(problems) - 3:,} more files, {len(problems):,} in all, that hold no text")
    return notes


def _digest(pieces: Iterator[Piece], digests: "array[int]", sizes: "array[int]") -> None:
    digest, size = hashlib.blake2b(digest_size=8), 0
    for piece in pieces:
        raw = piece.text.encode()
        digest.update(raw)
        size += len(raw)
        if piece.last:
            digests.append(int.from_bytes(digest.digest(), "little"))
            sizes.append(size)
            digest, size = hashlib.blake2b(digest_size=8), 0


def _copies(digests: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(n,) bool: documents of the same hash and length as an earlier one."""
    order = np.lexsort((sizes, digests))  # stable: of equal ones the earliest comes first
    same = (np.diff(digests[order]) == 0) & (np.diff(sizes[order]) == 0)
    copies = np.zeros(len(digests), dtype=bool)
    copies[order[1:][same]] = True
    return copies


def _cut(text: str, at: int) -> tuple[str, str]:
    """The text before and from byte `at` of its UTF-8 form, or from the character that contains it."""
    raw = text.encode()
    at = min(max(at, 0), len(raw))
    while 0 < at < len(raw) and raw[at] & 0xC0 == 0x80:
        at -= 1
    return raw[:at].decode(), raw[at:].decode()


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})", hint="check the path and its permissions") from None


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})", hint="check the path and its permissions") from None
    return stat.st_size, stat.st_mtime_ns


def _changed(path: Path) -> DataError:
    return DataError(f"{path} has changed while it was being read", hint="start again when it is complete")


def _save(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:  # given a path, numpy would add a suffix to it
        np.save(file, values, allow_pickle=False)
