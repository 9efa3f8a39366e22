"""The command: parse, call, print. Each verb imports what it needs when it runs, so that help answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from feedfwd import cli_study, cli_tasks
from feedfwd._version import __version__
from feedfwd.cli_settings import STARTED, layered, refuse_beside_resume
from feedfwd.errors import FeedfwdError


class Verbs(typer.core.TyperGroup):
    """All verbs; one that is stopped says so on stderr and exits as a shell expects: 130 by Ctrl-C, 143 by SIGTERM."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # typer itself would exit without a word
            print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
            sys.exit(getattr(stop, "code", 130))


app = typer.Typer(
    name="feedfwd",
    cls=Verbs,
    help="From raw data to a working model on the machine you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder with the files of a built-in data set; then nothing is downloaded."),
]
RunDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write.  [default: runs/<date>-<source>]")]
Effort = Annotated[
    str | None, typer.Option(metavar="quick|standard|best", help="How much to spend.  [default: standard]")
]
Minutes = Annotated[float | None, typer.Option(metavar="M", help="Plan the training to take this long.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of everything random.  [default: 0]")]
SetOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; `feedfwd info --settings` lists them."),
]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings from a TOML file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Stop before the first step and show what would be done.")]
ResumeRun = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run, bit for bit.", show_default=False)
]


def version(show: bool) -> None:
    if show:
        print(f"feedfwd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")] = False,
) -> None: ...


@app.command()
def fit(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A table (.csv, .tsv, .parquet, .jsonl, .xlsx); digits, iris, wine, breast_cancer, diabetes, mnist, "
            "fashion_mnist; an .npz file, or a folder of images by class. An existing path wins over a name.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Of a table: the column to predict; several, all numbers or all yes or no, if given again.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="random|time:COL|group:COL", help="Of a table: how its test part is split off.  [default: random]"
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="SOURCE", help="A test part of its own.")] = None,
    run: RunDir = None,
    effort: Effort = None,
    minutes: Minutes = None,
    seed: Seed = None,
    set_: SetOptions = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
    resume: ResumeRun = None,
) -> None:
    """Train a feed-forward network on a table, arrays or images."""
    from feedfwd.config import FitConfig, merge, parse
    from feedfwd.errors import ConfigError
    from feedfwd.recipes import fit as recipe
    from feedfwd.recipes.console import Terminal
    from feedfwd.recipes.verbs import opened

    flags: dict[str, Any] = {
        "source": source,
        "test": test,
        "target": target or None,
        "data_dir": str(data_dir) if data_dir else None,
        "effort": effort,
        "minutes": minutes,
        "seed": seed,
    }
    with Terminal() as terminal:
        if resume is not None:
            refuse_beside_resume(flags, split=split, set_=set_, run=run, config=config)
            opened(resume, "fit")
            recipe.resume(resume, terminal, started=STARTED)
            return
        splitting = {"data": {"split": split}} if split is not None else {}
        settings = merge(layered(FitConfig, config, set_, flags), splitting)
        if "source" not in settings:
            raise ConfigError("no SOURCE to train on", hint="try: feedfwd fit digits")
        chosen = parse(FitConfig, settings)
        if dry_run:
            recipe.dry_run(chosen, terminal)
        else:
            recipe.fit_config(chosen, run, terminal, started=STARTED)


@app.command()
def finetune(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="Labelled texts, pairs of texts or conversations: .csv, .tsv, .jsonl, .json, .parquet, .txt of "
            "text@label; a folder of them, or of a folder of .txt for each class; a data set of the hub as owner/name; "
            "or docstrings: the running Python's, by module.",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Start from a run of `pretrain`, or a folder or name of Hugging Face's.  [default: from scratch]",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="full|head|lora|dora", help="Which weights of MODEL are trained.  [default: full]"),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Teach what this fine-tuned model answers to a small bag of n-grams."),
    ] = None,
    unlabelled: Annotated[
        str | None, typer.Option(metavar="FILE", help="Texts without labels, for the teacher to answer.")
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="FILE", help="A test part of its own.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the texts.  [default: guessed]")] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the labels; several of 0 and 1 as A,B,C.  [default: guessed]"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="classify|regress|embed|rank|instruct|continue",
            help="What to learn; embed: vectors of texts, rank: which answer fits a query, both from pairs of texts; "
            "instruct: to answer, from conversations; continue: as in pretraining, from any text.  "
            "[default: by the columns]",
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(metavar="N", help="Train on N texts of each class alone, drawn by seed.")
    ] = None,
    run: RunDir = None,
    effort: Effort = None,
    minutes: Minutes = None,
    seed: Seed = None,
    set_: SetOptions = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    resume: ResumeRun = None,
) -> None:
    """Learn labels or numbers of texts, from a pretrained model or from scratch; or to answer, from conversations."""
    from feedfwd.recipes import tasks
    from feedfwd.recipes.console import Terminal
    from feedfwd.recipes.verbs import verb_of

    flags = {
        "source": data,
        "pretrained": pretrained,
        "method": method,
        "test": test,
        "text": text,
        "target": target,
        "task": task,
        "effort": effort,
        "minutes": minutes,
        "seed": seed,
    }
    of_labels = {"shots": shots, "teacher": teacher, "unlabelled": unlabelled}
    with Terminal() as terminal:
        if resume is not None:
            not_from_beside_resume(resume, pretrained)
            refuse_beside_resume({**flags, **of_labels}, set_=set_, run=run, config=config)
            tasks.task(verb_of(resume)).resume(resume, terminal, started=STARTED)
            return
        labelled = teacher is not None or unlabelled is not None
        task = cli_tasks.task_of(terminal, flags, set_, config, labelled=labelled)
        cli_tasks.learn(terminal, task, {**flags, **of_labels}, set_, config, run, dry_run)


def not_from_beside_resume(resume: Path, pretrained: str | None) -> None:
    from feedfwd.errors import ConfigError

    if pretrained is not None:
        raise ConfigError(
            f"--resume {resume} goes on with a run, --from {pretrained} starts a new one from its weights",
            hint="leave one out",
        )


@app.command()
def pretrain(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Files or folders of .txt .md .py .jsonl .csv .parquet, a data set of the hub as owner/name, or "
            "stdlib: the running Python's library.  [default: stdlib]",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="nano|tiny|small|…", help="Size of the model.  [default: by effort]")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Train this one further: a run of `pretrain`, or a folder or name of Hugging Face's.  "
            "[default: a new one]",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="full|lora|dora", help="Which weights of MODEL are trained.  [default: full]")
    ] = None,
    run: RunDir = None,
    effort: Effort = None,
    minutes: Minutes = None,
    seed: Seed = None,
    set_: SetOptions = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    resume: ResumeRun = None,
) -> None:
    """Train a language model on raw text, from zero or further."""
    from feedfwd.config import parse
    from feedfwd.config_pretrain import PretrainConfig
    from feedfwd.recipes import pretrain as recipe
    from feedfwd.recipes.console import Terminal

    flags = {
        "sources": sources or None,
        "size": size,
        "pretrained": pretrained,
        "method": method,
        "effort": effort,
        "minutes": minutes,
        "seed": seed,
    }
    with Terminal() as terminal:
        if resume is not None:
            not_from_beside_resume(resume, pretrained)
            refuse_beside_resume(flags, set_=set_, run=run, config=config)
            recipe.resume(resume, terminal, started=STARTED)
            return
        chosen = parse(PretrainConfig, layered(PretrainConfig, config, set_, flags))
        if dry_run:
            recipe.dry_run(chosen, terminal)
        else:
            recipe.pretrain_config(chosen, run, terminal, started=STARTED)


@app.command()
def generate(
    run: RunPath,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What the text begins with; may be empty.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt on each line; a line of JSON for each comes back.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Write at most so many.")] = 200,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Choose among the K likeliest.", show_default=False)
    ] = None,
    top_p: Annotated[float, typer.Option(metavar="P", help="Among the likeliest that have this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(metavar="P", help="Among those with this share of the likeliest's.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(metavar="X", help="Above 1: repeat less.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be given again.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the choices.")] = 0,
) -> None:
    """Write with a language model that `pretrain` trained, or answer with one of `finetune --task instruct`."""
    from feedfwd.errors import ConfigError
    from feedfwd.models.generate import Sampling
    from feedfwd.recipes.verbs import verb_of
    from feedfwd.recipes.writer import generate_run

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    if verb_of(run) == "instruct":
        from feedfwd.recipes.chatter import answer_run

        if stop or prompts is not None:
            raise ConfigError(
                f"--stop and --prompts are not for {run}, which answers a question", hint="leave them out"
            )
        answer_run(run, prompt, write_out, most=tokens, sampling=sampling, seed=seed)
        return
    generate_run(
        run, prompt, prompts, write_out,
        most=tokens, sampling=sampling, stop=stop or [], seed=seed, note=write_note,
    )  # fmt: skip


def write_out(piece: str) -> None:
    """To the screen at once, not when a line is full."""
    print(piece, end="", flush=True)


def write_note(text: str) -> None:
    """Beside the text that goes to the screen or into a file."""
    print(f"note: {text}", file=sys.stderr)


@app.command()
def evaluate(
    run: RunPath,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A source with labels.  [default: the run's own test part]"),
    ] = None,
    outside: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Texts that belong to no class: how well a classifier of texts tells them from DATA.",
            show_default=False,
        ),
    ] = None,
    false_reject: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Beside --outside: share of DATA that may be taken for outside.  [default: decide.false_reject]",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Score a trained run on data it has not seen."""
    from feedfwd.recipes.apply import evaluate_run
    from feedfwd.recipes.console import Terminal

    evaluate_run(run, data, Terminal(), data_dir=data_dir, outside=outside, false_reject=false_reject)


@app.command()
def predict(
    run: RunPath,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A table, an .npz or .npy file, an image, a folder of images; for a run of "
            "`finetune` a file of texts, or a text.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write .csv or .jsonl here.  [default: the screen]")
    ] = None,
    data_dir: DataDir = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="What of a text carried the answer, and the nearest training texts.")
    ] = False,
) -> None:
    """Apply a trained run to new inputs."""
    from feedfwd.recipes.apply import predict_run
    from feedfwd.recipes.console import Terminal

    if explain:
        from feedfwd.recipes.explain import explain_run

        explain_run(run, data, out, Terminal())
        return
    predict_run(run, data, out, Terminal(), data_dir=data_dir)


@app.command()
def export(
    run: RunPath,
    to: Annotated[
        str,
        typer.Option(
            metavar="hf|peft|onnx",
            help="hf: a model for transformers. peft: a run's adapters alone. onnx: a model of `fit`.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
) -> None:
    """Write a trained run in another project's form."""
    from feedfwd.recipes.console import Terminal
    from feedfwd.recipes.export import export_run

    export_run(run, to, out, Terminal())


@app.command()
def info(
    what: Annotated[
        str | None, typer.Argument(metavar="[RUN|SOURCE]", help="A run, or a data source.", show_default=False)
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List every setting with its meaning.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Show what a layer or network of this form costs."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Tell what a run or a data source holds, what a layer costs, or which settings there are."""
    from feedfwd.recipes.console import Terminal
    from feedfwd.recipes.info import info as tell

    tell(what, Terminal(), settings=settings, pairs=set_ or [], data_dir=data_dir)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look.")] = Path("runs"),
) -> None:
    """List the runs of a folder with their scores."""
    from feedfwd.recipes.console import Terminal
    from feedfwd.recipes.info import list_all

    list_all(folder, Terminal())


cli_study.add_to(app)


def main() -> None:
    """Run the command; a FeedfwdError becomes one line on stderr and exit status 2."""
    sys.path.append(str(Path.cwd()))  # a layer of the user's own lies where they work; last, so that it shadows nothing
    try:
        app()
    except FeedfwdError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before there was a verb
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
