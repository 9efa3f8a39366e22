"""How a conversation becomes tokens: a chat template, the model's own or one by name, and which tokens are learnt."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from feedfwd.data.chats import Chat, Turn
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.errors import ConfigError, DataError, nearest

CHATML = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PLAIN = """\
{{ bos_token }}{% for message in messages %}{% if message.role == "assistant" %}Answer:
{{ message.content }}{{ eos_token }}{% else %}{% if message.role == "user" %}Question:
{% endif %}{{ message.content }}

{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:
{% endif %}"""
NAMED = {"plain": PLAIN, "chatml": CHATML}
OPEN, SHUT = "\ue000", "\ue001"  # private characters, which no template and no text has


class Rendered(NamedTuple):
    """Token ids (T,), and for each whether the model learns to write it."""

    ids: list[int]
    learnt: list[bool]


class ChatTemplate:
    """A Jinja template of `messages` and `add_generation_prompt`, as Hugging Face's tokenizers carry.

    What people write is encoded apart from the template, so that a special token's name in a message is plain text and
    can't end a turn. Learnt are the assistant's texts and the special token that the template closes them with: where
    it closes them with none, generation would never stop, and `ConfigError` says so.
    """

    def __init__(self, source: str, tokenizer: ModelTokenizer, name: str = "") -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.tokenizer, self.name, self.source = tokenizer, name, source
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"the chat template can't be read ({error})", hint="name one: plain or chatml") from None
        special = sorted(self._special, key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    @cached_property
    def _special(self) -> dict[str, int]:
        found = {token.content: i for i, token in self.tokenizer.engine.get_added_tokens_decoder().items()}
        return {content: i for content, i in found.items() if content}

    def conversation(self, chat: Chat) -> Rendered:
        """A whole conversation; the last turn is the assistant's."""
        pieces = self._pieces(chat, prompt=False)
        ids: list[int] = []
        learnt: list[bool] = []
        closing = False
        for text, turn in pieces:
            if turn is not None:
                found = self._plain(text)
                closing = chat[turn].role == "assistant"
                ids += found
                learnt += [closing] * len(found)
                continue
            for part, is_special in self._parts(text):
                ids += part
                learnt += [closing] * len(part)
                closing = closing and not is_special
            if closing:
                raise ConfigError(
                    f"the chat template {self.name or 'of the model'} closes an answer with no special token: "
                    "generation would never stop",
                    hint="name another one with --set chat.template=plain",
                )
        return Rendered(ids, learnt)

    def prompt(self, chat: Sequence[Turn]) -> list[int]:
        """The conversation up to where the assistant is to answer."""
        ids: list[int] = []
        for text, turn in self._pieces(chat, prompt=True):
            if turn is not None:
                ids += self._plain(text)
            else:
                ids += [i for part, _ in self._parts(text) for i in part]
        return ids

    @cached_property
    def stop(self) -> int:
        """The token that ends an answer."""
        chat = (Turn("user", "a"), Turn("assistant", "b"))
        rendered = self.conversation(chat)
        return max(zip(rendered.learnt, range(len(rendered.ids)), rendered.ids, strict=True))[2]

    def _pieces(self, chat: Sequence[Turn], *, prompt: bool) -> list[tuple[str, int | None]]:
        """The template's own text in order, and in it the turns, by their number."""
        from jinja2 import TemplateError

        marked = [{"role": turn.role, "content": f"{OPEN}{i}{SHUT}"} for i, turn in enumerate(chat)]
        special = {role: token for role, token in self.tokenizer.special.items() if isinstance(token, str)}
        try:
            text = self._template.render(messages=marked, add_generation_prompt=prompt, **special)
        except (TemplateError, TypeError) as error:
            what = f"the chat template refuses a conversation of {', '.join(turn.role for turn in chat)} ({error})"
            raise DataError(
                what, hint="leave such rows out, or name another one with --set chat.template=plain"
            ) from None
        found: list[tuple[str, int | None]] = []
        parts = re.split(f"{OPEN}(\\d+){SHUT}", text)
        for i, part in enumerate(parts):
            if i % 2:
                found.append((chat[int(part)].text, int(part)))
            elif part:
                found.append((part, None))
        if missing := {i for i, turn in enumerate(chat) if turn.role == "assistant"} - {turn for _, turn in found}:
            what = f"the chat template leaves out the assistant's turn {min(missing) + 1}"
            raise DataError(what, hint="name another one with --set chat.template=plain")
        return found

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer.encode([text], longest=None, special=False)[0]

    def _parts(self, text: str) -> list[tuple[list[int], bool]]:
        """Tokens of the template's own text, special ones by themselves."""
        found: list[tuple[list[int], bool]] = []
        at = 0
        for match in self._splitter.finditer(text):
            if plain := text[at : match.start()]:
                found.append((self._plain(plain), False))
            found.append(([self._special[match[0]]], True))
            at = match.end()
        if plain := text[at:]:
            found.append((self._plain(plain), False))
        return found


def chat_template(name: str, tokenizer: ModelTokenizer, folder: Path | None = None) -> ChatTemplate:
    """`auto` is the model's own where it has one, else `plain`; `plain`, `chatml`, or the path of a .jinja file."""
    if name == "auto":
        own = None if folder is None else _own(folder)
        return ChatTemplate(own, tokenizer) if own is not None else ChatTemplate(PLAIN, tokenizer, "plain")
    if name in NAMED:
        template = ChatTemplate(NAMED[name], tokenizer, name)
        if name == "chatml" and tokenizer.id("<|im_end|>") is None:
            what = "chat.template=chatml needs the special tokens <|im_start|> and <|im_end|>, which the model has not"
            raise ConfigError(what, hint="take chat.template=plain")
        return template
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"unknown chat.template={name!r}", hint=nearest(name, ["auto", *NAMED]))
    return ChatTemplate(path.read_text(encoding="utf-8"), tokenizer, path.name)


def _own(folder: Path) -> str | None:
    """The template in a model's folder: a file of its own, or in its tokenizer's settings."""
    try:
        if (file := folder / "chat_template.jinja").is_file():
            return file.read_text(encoding="utf-8")
        if not (file := folder / "tokenizer_config.json").is_file():
            return None
        found = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is damaged ({error})", hint="fetch or copy the model again") from None
    if isinstance(found, list):  # several by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _refuse(message: Any) -> None:
    from jinja2 import TemplateError

    raise TemplateError(str(message))
