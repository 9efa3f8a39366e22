"""A model that answers: what `ff.load` gives for a run of `finetune --task instruct`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from feedfwd.checkpoint import Run
from feedfwd.config import parse
from feedfwd.config_instruct import InstructConfig
from feedfwd.data.chats import Turn
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.data.templates import ChatTemplate
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.models.generate import Sampling, tokens
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes.pretrained import Pretrained
from feedfwd.recipes.verbs import opened

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"


def about(pretrained: Pretrained, template: str) -> dict[str, Any]:
    """What beside tokenizer.json and the template makes the model anew, for preprocess.json."""
    t = pretrained.tokenizer
    return {
        "settings": pretrained.settings,
        "special": t.special,
        "before": t.before,
        "after": t.after,
        "template": template,
        "family": pretrained.family,
    }


class Chatter:
    """`answer` and `stream`; and `model`, a plain nn.Module from token ids (B, T) to logits (B, T, V)."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: ModelTokenizer,
        template: ChatTemplate,
        config: InstructConfig,
        run: Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.template, self.config, self.run = model, tokenizer, template, config, run

    @classmethod
    def load(cls, path: Path) -> "Chatter":
        run = opened(path, "instruct")
        config = parse(InstructConfig, run.settings())
        for name in (TOKENIZER, TEMPLATE):
            if not (path / name).is_file():
                raise RunError(f"{path} is incomplete: {name} is missing", hint="restore it from a copy of the run")
        said = run.read_json(run.preprocess_file)
        try:
            tokenizer = ModelTokenizer(
                run.read_text(path / TOKENIZER), said["special"], before=said["before"], after=said["after"]
            )
            template = ChatTemplate(run.read_text(path / TEMPLATE), tokenizer, said["template"])
            model = build(said["settings"])
        except (KeyError, TypeError) as error:
            what = f"{run.preprocess_file} doesn't tell of the model ({type(error).__name__}: {error})"
            raise RunError(what, hint="restore it from a copy, or train again") from None
        try:
            model.load_state_dict(run.load_model())
        except RuntimeError as error:
            raise run.misfit(error) from None
        return cls(model.eval(), tokenizer, template, config, path)

    @property
    def result(self) -> dict[str, Any]:
        """Scores, seconds and environment, as in result.json."""
        if self.run is None:
            raise RunError("this model was not loaded from a run", hint="use ff.load(run)")
        run = Run(self.run)
        return run.read_json(run.result_file)

    def stream(
        self,
        question: str | Sequence[Turn | tuple[str, str]],
        *,
        most: int = 200,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer to a question, or to a conversation of (role, text), piece by piece, to its end."""
        turns = [Turn("user", question)] if isinstance(question, str) else [Turn(*turn) for turn in question]
        if not turns or not turns[-1].text.strip():
            raise DataError("there is no question", hint="give a text")
        ids = self.template.prompt([Turn(role, text.strip()) for role, text in turns])
        end, written, shown = self.template.stop, [], ""
        for (one,) in tokens(self.model, [ids], most=most, sampling=sampling, end=end, seed=seed):
            if one is None or one == end:
                break
            written.append(one)
            text = self.tokenizer.decode(written)
            if not text.endswith("�"):  # a character may take several tokens
                yield text[len(shown) :]
                shown = text

    def answer(self, question: str | Sequence[Turn | tuple[str, str]], **how: Any) -> str:
        """The whole answer; `how` as `stream` takes it."""
        return "".join(self.stream(question, **how)).strip()

    def __repr__(self) -> str:
        return f"Chatter({len(self.model.blocks)} layers, {self.model.width} wide, run={str(self.run)!r})"


def answer_run(
    path: Path, question: str | None, out: Callable[[str], object], *, most: int, sampling: Sampling, seed: int = 0
) -> None:
    """`feedfwd generate` of such a run: the answer to a question, as it comes."""
    if question is None:
        raise ConfigError(f"{path} answers one question at a time", hint='give it: feedfwd generate RUN "QUESTION"')
    if most < 1:
        raise ConfigError(f"--tokens {most} leaves nothing to write", hint="try --tokens 200")
    for piece in Chatter.load(path).stream(question, most=most, sampling=sampling, seed=seed):
        out(piece)
    out("\n")
