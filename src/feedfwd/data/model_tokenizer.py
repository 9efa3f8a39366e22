"""A tokenizer as a pretrained model came with it: texts to the rows that model reads, its own special tokens around.

`TextTokenizer` turns text into a stream that documents share; this one gives each text a row of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from feedfwd.data.tokenizer import MASK_NAMES, TextTokenizer
from feedfwd.errors import DataError

OVERLAP = 4  # windows share one part in so many
PAD_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


class ModelTokenizer:
    """Texts ⇄ rows of token numbers.

    `special` are the model's special tokens by role, as transformers' tokenizer_config.json has them ("cls_token":
    "[CLS]"). `before` and `after` are put around a text where tokenizer.json itself says nothing of that. Special
    tokens' names inside a text are text.

    >>> from feedfwd.data.tokenizer import byte_tokenizer
    >>> tokenizer = ModelTokenizer(byte_tokenizer().to_json(), after=[256])
    >>> tokenizer.encode(["one", "to"], longest=3), tokenizer.encode(["to"], longest=None, special=False)
    ([[111, 110, 256], [116, 111, 256]], [[116, 111]])
    """

    def __init__(
        self,
        text: str,
        special: Mapping[str, str] | None = None,
        *,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
    ) -> None:
        from tokenizers import Tokenizer

        try:
            engine = Tokenizer.from_str(text)
        except Exception as error:  # the engine raises bare Exceptions
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"the tokenizer can't be read ({problem})", hint="fetch or copy the model again") from None
        engine.no_padding()
        engine.no_truncation()
        engine.encode_special_tokens = True
        self.engine, self.special = engine, dict(special or {})
        self.before, self.after = list(before), list(after)
        self.text: str = engine.to_str()
        self.vocabulary = 1 + max(engine.get_vocab().values())
        names = [*filter(None, [self.special.get("pad_token")]), *PAD_NAMES]
        self.pad: int = next((i for name in names if (i := self.id(name)) is not None), 0)
        names = [*filter(None, [self.special.get("mask_token")]), *MASK_NAMES]
        self.mask: int | None = next((i for name in names if (i := self.id(name)) is not None), None)

    @classmethod
    def of(cls, tokenizer: TextTokenizer, *, both: bool) -> "ModelTokenizer":
        """Of a model that was pretrained here: a text stands after the end token, with `both` before one too."""
        end = [tokenizer.end]
        return cls(tokenizer.to_json(), tokenizer.special_tokens(), before=end, after=end if both else [])

    @classmethod
    def load(cls, folder: Path, special: Mapping[str, str] | None = None) -> "ModelTokenizer":
        """From the tokenizer.json in a folder."""
        file = folder / "tokenizer.json"
        if not file.is_file():
            hint = "let transformers' AutoTokenizer load and save it, which writes tokenizer.json"
            raise DataError(f"{folder} has no tokenizer.json", hint=hint)
        return cls(file.read_text(encoding="utf-8"), special)

    @property
    def set_apart(self) -> set[int]:
        """The tokens that are no part of any text."""
        added = self.engine.get_added_tokens_decoder()
        return {number for number, token in added.items() if token.special} | {*self.before, *self.after}

    def id(self, token: str) -> int | None:
        """The number of a token by its name, special ones too."""
        found: int | None = self.engine.token_to_id(token)
        return found

    def encode(self, texts: Sequence[str], *, longest: int | None, special: bool = True) -> list[list[int]]:
        """A row for each text, of at most `longest` tokens, the special ones around it included where wanted."""
        around = len(self.before) + len(self.after) if special else 0
        if longest is None:
            self.engine.no_truncation()
        else:
            if longest <= around + (self.engine.num_special_tokens_to_add(is_pair=False) if special else 0):
                raise DataError(f"longest={longest} leaves no room for text", hint="give more tokens a text")
            self.engine.enable_truncation(longest - around)
        try:
            encoded = self.engine.encode_batch_fast(list(texts), add_special_tokens=special)
        except TypeError:
            odd = next((text for text in texts if not _is_unicode(text)), "")
            raise DataError(f"{odd!a} is not Unicode text", hint="give it as UTF-8") from None
        if not special:
            return [row.ids for row in encoded]
        return [[*self.before, *row.ids, *self.after] for row in encoded]

    def windows(self, texts: Sequence[str], longest: int, most: int) -> list[list[list[int]]]:
        """Each text as up to `most` rows of at most `longest` tokens, special ones around each; all but the last are
        full, and each begins with the last quarter of what the one before had of the text.
        """
        around = len(self.before) + len(self.after)
        room = longest - around - self.engine.num_special_tokens_to_add(is_pair=False)
        if room < 1:
            raise DataError(f"longest={longest} leaves no room for text", hint="give more tokens a text")
        self.engine.enable_truncation(longest - around, stride=room // OVERLAP)
        encoded = self.engine.encode_batch(list(texts), add_special_tokens=True)
        parts = [[row, *row.overflowing][:most] for row in encoded]
        return [[[*self.before, *part.ids, *self.after] for part in row] for row in parts]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of tokens, special ones left out unless wanted."""
        text: str = self.engine.decode(list(ids), skip_special_tokens=not special)
        return text


def _is_unicode(text: object) -> bool:
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False
