"""Tokenizers: byte-level BPE learnt from the corpus, characters, bytes, or any tokenizer.json of Hugging Face's.

All are one kind of object around the `tokenizers` engine, and one tokenizer.json that transformers loads too.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from feedfwd.data.cache import cache_folder, key, write_whole
from feedfwd.data.corpus import Corpus
from feedfwd.data.words import WordLookup
from feedfwd.errors import ConfigError, DataError

END, MASK, UNKNOWN = "<|endoftext|>", "<|mask|>", "<|unknown|>"
END_NAMES = (END, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
MASK_NAMES = (MASK, "<mask>", "[MASK]")
UNKNOWN_NAMES = (UNKNOWN, "<unk>", "[UNK]")
KINDS = ("bpe", "chars", "bytes")
SAMPLE = 16_000_000  # bytes of text that BPE is learnt from; of Chinese it holds 50 times as many in memory
FEW_CORES = 4  # up to which one thread that looks words up is faster than the engine on all of them
FORMAT = 1


class TextTokenizer:
    """Text ⇄ token numbers.

    `end` closes every document, and stands before the first one. `mask` is there for masked-token training.
    A special token's name inside a text is text: no document can end itself early.

    >>> tokenizer = byte_tokenizer()
    >>> tokenizer.encode("né"), tokenizer.decode([110, 195, 169]), tokenizer.end, tokenizer.vocabulary
    ([110, 195, 169], 'né', 256, 257)
    """

    def __init__(self, engine: Tokenizer, notes: tuple[str, ...] = ()) -> None:
        engine.no_padding()
        engine.no_truncation()
        engine.encode_special_tokens = True
        self.engine, self.notes = engine, notes
        if _find(engine, END_NAMES) is None:
            engine.add_special_tokens([END])
            self.notes += (f"the tokenizer has no token that ends a document: {END} was added",)
        self.end: int = _find(engine, END_NAMES)  # type: ignore[assignment]
        self.mask = _find(engine, MASK_NAMES)
        self.unknown = _find(engine, UNKNOWN_NAMES)
        self.vocabulary = 1 + max(engine.get_vocab().values())
        few = (os.cpu_count() or 1) <= FEW_CORES
        self._lookup = WordLookup(self._encode_plainly) if few and WordLookup.serves(engine) else None

    def encode(self, text: str) -> list[int]:
        try:
            return self.engine.encode(text, add_special_tokens=False).ids
        except TypeError:  # half a character, as Python makes of bytes on a command line that are no UTF-8
            raise DataError(f"{text!a} is not Unicode text", hint="give it as UTF-8") from None
        except Exception as error:  # the engine raises bare Exceptions
            raise _unable(error) from None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Many texts at once: by looking words up where that is exact and cores are few, else by the engine on all."""
        if self._lookup is not None:
            return self._lookup.encode_batch(texts)
        return [np.array(ids, dtype=np.uint32) for ids in self._encode_plainly(texts)]

    def _encode_plainly(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self.engine.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the engine raises bare Exceptions
            raise _unable(error) from None

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens, special ones left out unless wanted; bytes that are no text yet become �."""
        return self.engine.decode(list(ids), skip_special_tokens=not special)

    def lost(self, texts: Iterable[str]) -> float:
        """The share of characters that don't come back from their tokens, or come on top.

        >>> byte_tokenizer().lost(["né"]), learn_chars(["abc"]).lost(["abcd"])
        (0.0, 0.25)
        """
        total, changed = 0, 0
        for text in texts:
            was, back = Counter(text), Counter(self.decode(self.encode(text)))
            added = sum((back - was).values()) - (text[:1] != " ")  # one space may stand before a text
            total, changed = total + len(text), changed + max(sum((was - back).values()), added)
        return min(1.0, changed / max(1, total))

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(self.engine.to_str().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """The content of a tokenizer.json, which `load` and transformers read."""
        return self.engine.to_str(pretty=True)

    def special_tokens(self) -> dict[str, str]:
        """What transformers' tokenizer_config.json calls them, for an export."""
        named = {"eos_token": self.end, "bos_token": self.end, "pad_token": self.end}
        if self.mask is not None:
            named["mask_token"] = self.mask
        if self.unknown is not None:
            named["unk_token"] = self.unknown
        return {name: str(self.engine.id_to_token(i)) for name, i in named.items()}

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a tokenizer.json, or a folder that has one."""
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"there is no tokenizer at {file}", hint="give a tokenizer.json or a folder that has one")
        try:
            return cls(Tokenizer.from_str(file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} can't be read ({error})", hint="check the path and its permissions") from None
        except Exception as error:  # the engine raises bare Exceptions
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"{file} is not a tokenizer.json ({problem})", hint="fetch or write it again") from None


def make_tokenizer(
    name: str, corpus: Corpus, *, vocabulary: int | None = None, mask: bool = False, sample: int = SAMPLE
) -> TextTokenizer:
    """The tokenizer that `data.tokenizer` names: bpe, chars, bytes, or a path; learnt ones come from the cache.

    `vocabulary` counts special tokens too; None: as many as there are (chars), 8192 or as the text allows (bpe).
    """
    if name not in KINDS:
        return _from_file(name, vocabulary, mask)
    if name == "bytes":
        if vocabulary not in (None, 257 + mask):
            raise ConfigError(f"data.vocabulary={vocabulary} doesn't fit bytes", hint=f"they have {257 + mask} tokens")
        return byte_tokenizer(mask=mask)
    notes: tuple[str, ...] = ()
    if name == "bpe" and corpus.bytes_of("train") > sample:
        notes = (f"the tokenizer is learnt from an even sample of {sample / 1e6:,.0f} MB of the text",)
    made = key("tokenizer", tokenizers.__version__, FORMAT, corpus.fingerprint, name, vocabulary, mask, sample)
    file = cache_folder() / "tokenizers" / f"{made}.json"
    if file.is_file():
        try:
            return TextTokenizer(Tokenizer.from_file(str(file)), notes)
        except Exception:  # damaged: learnt again
            pass
    if name == "chars":
        tokenizer = learn_chars(corpus.texts(), vocabulary, mask=mask)
    else:
        tokenizer = learn_bpe(corpus.texts(sample), vocabulary, mask=mask)
    content = tokenizer.to_json()
    write_whole(file, lambda part: part.write_text(content, encoding="utf-8"))
    tokenizer.notes = notes
    return tokenizer


def byte_tokenizer(*, mask: bool = False) -> TextTokenizer:
    """One token a byte of UTF-8; a byte's number is its token's."""
    alphabet = {_byte_letter(byte): byte for byte in range(256)}
    engine = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([END, MASK][: 1 + mask])
    return TextTokenizer(engine)


def learn_chars(texts: Iterable[str], vocabulary: int | None = None, *, mask: bool = False) -> TextTokenizer:
    """One token a character of the texts, the most frequent ones if `vocabulary` is smaller; others become unknown."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    special = [UNKNOWN, END, MASK][: 2 + mask]
    if vocabulary is None:
        vocabulary = len(counts) + len(special)
    if vocabulary <= len(special):
        raise ConfigError(
            f"data.vocabulary={vocabulary} leaves no room for characters",
            hint=f"the text has {len(counts):,} different ones, and {len(special)} special tokens come on top",
        )
    if vocabulary > len(counts) + len(special):
        raise _too_large(vocabulary, len(counts) + len(special))
    frequent = sorted(counts, key=lambda c: (-counts[c], c))[: vocabulary - len(special)]
    alphabet = {char: i for i, char in enumerate([*sorted(frequent), UNKNOWN])}
    engine = Tokenizer(models.BPE(vocab=alphabet, merges=[], unk_token=UNKNOWN))  # no merges: characters stay alone
    engine.decoder = decoders.Fuse()
    engine.add_special_tokens(special)
    return TextTokenizer(engine)


def learn_bpe(texts: Iterable[str], vocabulary: int | None = None, *, mask: bool = False) -> TextTokenizer:
    """Byte-level byte-pair encoding (Sennrich 2016, arXiv 1508.07909; bytes and word pattern as in GPT-2).

    Every text can be encoded, and comes back to the bit, since all 256 bytes are tokens.
    """
    special = [END, MASK][: 1 + mask]
    smallest = 256 + len(special)
    wanted = 8192 if vocabulary is None else vocabulary
    if wanted < smallest:
        raise ConfigError(
            f"data.vocabulary={wanted} is too small for byte-level BPE",
            hint=f"give at least {smallest}: the bytes and {len(special)} special; or set data.tokenizer=chars",
        )
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    reached = engine.get_vocab_size()
    if vocabulary is not None and reached < vocabulary:
        raise _too_large(vocabulary, reached)
    return TextTokenizer(engine)


def _from_file(name: str, vocabulary: int | None, mask: bool) -> TextTokenizer:
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"data.tokenizer={name!r} is neither a kind nor a path", hint=f"kinds: {', '.join(KINDS)}")
    tokenizer = TextTokenizer.load(path)
    if vocabulary not in (None, tokenizer.vocabulary):
        raise ConfigError(
            f"data.vocabulary={vocabulary}, but the tokenizer {name} has {tokenizer.vocabulary:,}",
            hint="leave data.vocabulary out",
        )
    if mask and tokenizer.mask is None:
        tokenizer.engine.add_special_tokens([MASK])
        return TextTokenizer(tokenizer.engine, (*tokenizer.notes, f"the tokenizer has no mask token: {MASK} was added"))
    return tokenizer


def _unable(error: Exception) -> DataError:
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    what = f"the tokenizer can't encode the text ({problem})"
    return DataError(what, hint="take one that has an unknown token or falls back to bytes, such as data.tokenizer=bpe")


def _find(engine: Tokenizer, names: Sequence[str]) -> int | None:
    return next((i for name in names if (i := engine.token_to_id(name)) is not None), None)


def _too_large(vocabulary: int, reached: int) -> ConfigError:
    return ConfigError(
        f"data.vocabulary={vocabulary:,} is larger than the text allows: it gives {reached:,} tokens",
        hint=f"set data.vocabulary={reached} or fewer, or give more text",
    )


def _byte_letter(byte: int) -> str:
    """The printable letter that stands for a byte in byte-level vocabularies (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))
