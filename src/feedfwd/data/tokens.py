"""A corpus as token numbers on disk: made once, in parallel and in a stream, and read in stretches of any place.

    tokens/<key>/<part>-<source>/00000.npy    a shard: uint16, or uint32 where the vocabulary asks for it
    tokens/<key>/<part>-<source>/00000.json   what is in it; its presence means: finished
    tokens/<key>/<part>-<source>/all.json     all shards, when the last is finished

A kill loses the shard it was at; the next start reads past what finished shards hold, without tokenising it again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tokenizers

from feedfwd.data.cache import cache_folder, key, read_json, write_json, write_whole
from feedfwd.data.corpus import Corpus, Part
from feedfwd.data.documents import Piece
from feedfwd.data.tokenizer import TextTokenizer
from feedfwd.errors import DataError

SHARD = 1 << 22  # tokens: a few seconds of work
TOGETHER = 1 << 19  # characters tokenised at once; while it works the engine holds about 100 bytes for each
FORMAT = 1

Progress = Callable[[int], None]  # told the bytes of text done since the last call


@dataclass
class Counts:
    """What is in a shard, or in all of them."""

    tokens: int = 0
    pieces: int = 0
    documents: int = 0
    bytes: int = 0  # UTF-8, of the text alone: end tokens have none
    unknown: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


class Tokens:
    """Token numbers in shard files, documents in a row, each closed by the token `end`.

    Read with ordinary file reads: a memory map would count every page that was ever touched as this process's memory.
    """

    def __init__(self, shards: Sequence[Path], counts: Counts, end: int, vocabulary: int, name: str = "") -> None:
        self.counts, self.end, self.vocabulary, self.name = counts, end, vocabulary, name
        self.dtype = np.dtype(np.uint16)
        self._files: list[tuple[FileIO, int]] = []
        sizes = []
        for path in shards:
            file = FileIO(path)
            n, self.dtype = _header(file)
            self._files.append((file, file.tell()))
            sizes.append(n)
        self._bounds = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self._bounds[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop`, int64; token -1 is the end token that stands before the first document."""
        out = np.full(stop - start, self.end, dtype=np.int64)
        for (file, offset), begin, end in zip(self._files, self._bounds[:-1], self._bounds[1:], strict=True):
            first, last = max(start, begin), min(stop, end)
            if first < last:
                stretch = np.empty(last - first, dtype=self.dtype)
                file.seek(offset + (first - begin) * self.dtype.itemsize)
                if file.readinto(stretch.data) != stretch.nbytes:
                    raise DataError(f"{file.name} is damaged", hint="delete it and run again: it will be made anew")
                out[first - start : last - start] = stretch
        return out

    def close(self) -> None:
        for file, _ in self._files:
            file.close()


def tokenize(corpus: Corpus, tokenizer: TextTokenizer, part: Part, *, progress: Progress | None = None) -> list[Tokens]:
    """The tokens of one part of a corpus, a `Tokens` for each source; from the cache where they are there."""
    made = key("tokens", tokenizers.__version__, FORMAT, corpus.fingerprint, tokenizer.fingerprint)
    dtype = np.dtype("<u2" if tokenizer.vocabulary <= 1 << 16 else "<u4")
    out = []
    for i, source in enumerate(corpus.sources):
        folder = cache_folder() / "tokens" / made / f"{part}-{i}"
        names = read_json(folder / "all.json")
        finished = _finished(folder)
        if names is None or len(finished) != names["shards"]:
            finished += _write(folder, corpus.pieces(part, i), finished, tokenizer, dtype, progress)
            write_json(folder / "all.json", {"shards": len(finished)})
        elif progress is not None:
            progress(sum(counts.bytes for counts in finished))
        shards = [folder / f"{n:05}.npy" for n in range(len(finished))]
        total = sum(finished, Counts())
        out.append(Tokens(shards, total, tokenizer.end, tokenizer.vocabulary, source.name))
    return out


def _finished(folder: Path) -> list[Counts]:
    """The shards from the first on that are whole."""
    found: list[Counts] = []
    while (facts := read_json(folder / f"{len(found):05}.json")) is not None:
        try:
            counts = Counts(**facts)
            with (folder / f"{len(found):05}.npy").open("rb") as file:
                n, dtype = _header(file)
                whole = file.tell() + n * dtype.itemsize == file.seek(0, 2)
        except (OSError, ValueError, TypeError):
            break
        if n != counts.tokens or not whole:
            break
        found.append(counts)
    return found


def _header(file: BinaryIO | FileIO) -> tuple[int, np.dtype]:
    """How many tokens a shard has, and their type; the file then stands at the first."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not a shard")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return int(shape[0]), dtype


def _write(
    folder: Path,
    pieces: Iterator[Piece],
    finished: Sequence[Counts],
    tokenizer: TextTokenizer,
    dtype: np.dtype,
    progress: Progress | None,
) -> list[Counts]:
    """The shards after the finished ones; returns what is in them."""
    for counts in finished:
        next(islice(pieces, counts.pieces - 1, None), None)
        if progress is not None:
            progress(counts.bytes)
    written: list[Counts] = []
    held: list[np.ndarray] = []
    shard = Counts()

    def close() -> None:
        nonlocal shard, held
        name = f"{len(finished) + len(written):05}"
        write_whole(folder / f"{name}.npy", lambda part: _save(part, held, dtype))
        write_json(folder / f"{name}.json", asdict(shard))
        written.append(shard)
        shard, held = Counts(), []

    for batch, encoded in _encoded(_together(pieces), tokenizer):
        for piece, ids in zip(batch, encoded, strict=True):
            held.append(np.append(ids, tokenizer.end).astype(dtype) if piece.last else ids.astype(dtype))
            unknown = 0 if tokenizer.unknown is None else int((ids == tokenizer.unknown).sum())
            shard += Counts(len(held[-1]), 1, int(piece.last), len(piece.text.encode()), unknown)
            if shard.tokens >= SHARD:
                close()
        if progress is not None:
            progress(sum(len(piece.text.encode()) for piece in batch))
    if shard.tokens:
        close()
    return written


def _together(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= TOGETHER:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterator[list[Piece]], tokenizer: TextTokenizer
) -> Iterator[tuple[list[Piece], list[np.ndarray]]]:
    """Each batch with its tokens, in order; the next one is read while the engine's threads are at work."""
    with ThreadPoolExecutor(1) as worker:
        pending: tuple[list[Piece], Any] | None = None
        for batch in batches:
            upcoming = batch, worker.submit(tokenizer.encode_batch, [piece.text for piece in batch])
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = upcoming
        if pending is not None:
            yield pending[0], pending[1].result()


def _save(path: Path, stretches: Sequence[np.ndarray], dtype: np.dtype) -> None:
    with path.open("wb") as file:
        np.save(file, np.concatenate(stretches).astype(dtype, copy=False), allow_pickle=False)
