"""The verbs that choose by measuring, and show what was chosen. `cli.py` adds them to the command."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE", help="What the verb trains on; for pretrain several.", show_default=False),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every variant."),
]
ConfigFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings of every variant from a TOML file.")]
RunDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write.  [default: runs/<date>-…]")]
Effort = Annotated[
    str | None, typer.Option(metavar="quick|standard|best", help="How much to spend.  [default: standard]")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="First seed.  [default: 0]")]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN", help="Column of the answers, of a table or of labelled texts; several if given again."
    ),
]
DataDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with the files of a built-in data set.")]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Trainings at a time.  [default: the cores; pretrain, finetune: 1]"),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Database that processes and machines share.  [default: study.db in the directory]"
    ),
]
Score = Annotated[str | None, typer.Option(metavar="NAME", help="What decides.  [default: accuracy, RMSE, …]")]
Resume = Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with a study, or take part in it.")]


def compare(
    source: Source = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,…", help="Try these values; may be given again. KEY=LOW..HIGH: search a range."),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Trainings of each variant.")] = 5,
    minutes: Annotated[float | None, typer.Option(metavar="M", help="Of each training.")] = None,
    match: Annotated[
        str | None, typer.Option(metavar="parameters|flops|seconds", help="Make variants equal in this.")
    ] = None,
    verb: Annotated[str, typer.Option(metavar="fit|pretrain|finetune", help="What is trained.")] = "fit",
    search: Annotated[str, typer.Option(metavar="grid|random|tpe|halving", help="Which variants are tried.")] = "grid",
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Variants that a search tries.  [default: 20]")
    ] = None,
    score: Score = None,
    storage: Storage = None,
    workers: Workers = None,
    run: RunDir = None,
    effort: Effort = None,
    seed: Seed = None,
    target: Target = None,
    set_: Sets = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the variants and about how long they take.")] = False,
    resume: Resume = None,
) -> None:
    """Train variants on equal seeds and splits, and say which is better, if any."""
    from feedfwd.recipes.console import Terminal
    from feedfwd.study import compare as study

    with Terminal() as terminal:
        if resume is not None:
            study.resume(resume, terminal, workers=workers)
            return
        base = _base(verb, source, config, set_, effort=effort, seed=seed, target=target, data_dir=data_dir)
        plan = study.planned(
            base,
            vary or [],
            verb=verb,
            seeds=seeds,
            minutes=minutes,
            match=match,
            search=search,
            trials=trials,
            score=score,
        )
        if dry_run:
            study.dry_run(plan, terminal, workers=workers)
        else:
            study.compare(plan, terminal, run, storage=storage, workers=workers)


def advise(
    source: Source = None,
    minutes: Annotated[float, typer.Option(metavar="M", help="Time to measure for.")] = 10.0,
    score: Score = None,
    workers: Workers = None,
    run: RunDir = None,
    effort: Effort = None,
    seed: Seed = None,
    target: Target = None,
    set_: Sets = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on after a stop or a kill.")] = None,
) -> None:
    """Find structure, activation and training for these data by measuring.

    Advised is only what is better than the defaults beyond chance, on seeds and splits that had no part in finding it;
    else the defaults. What --set says is settled and not tried.
    """
    from feedfwd.recipes.console import Terminal
    from feedfwd.study import advise as study

    with Terminal() as terminal:
        if resume is not None:
            study.resume(resume, terminal, workers=workers)
            return
        example = "feedfwd advise iris --minutes 1"
        base = _base("fit", source, config, set_, example, effort=effort, seed=seed, target=target, data_dir=data_dir)
        study.advise(base, minutes, terminal, run, score=score, workers=workers)


def graph(
    what: Annotated[str, typer.Argument(metavar="RUN|SOURCE", help="A run, or what `fit` would train on.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The SVG.  [default: graph.svg in the run, or SOURCE-graph.svg]")
    ] = None,
    effort: Effort = None,
    target: Target = None,
    set_: Sets = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Draw a network's computation, forward and backward: shapes, parameters, FLOPs, bytes kept."""
    from feedfwd.recipes.console import Terminal
    from feedfwd.study.graph import graph as draw

    base = _base("fit", [what], config, set_, effort=effort, target=target, data_dir=data_dir)
    draw(what, out, Terminal(), base)


def _base(
    verb: str,
    source: list[str] | None,
    config: Path | None,
    set_: list[str] | None,
    example: str = "feedfwd compare digits --vary ffn.activation=relu,gelu",
    **flags: object,
) -> dict[str, object]:
    """The settings that all variants share, nested, as they were said."""
    from feedfwd.cli_settings import layered
    from feedfwd.errors import ConfigError
    from feedfwd.study.trainings import training

    kind = training(verb).kind
    given = {k: str(v) if isinstance(v, Path) else v for k, v in flags.items() if v is not None}
    if (target := given.pop("target", None)) and isinstance(target, list):
        given["target"] = target if verb == "fit" else ",".join(target)
    for key in given.keys() - kind.model_fields.keys():
        raise ConfigError(f"--{key.replace('_', '-')} can't be used with {verb}", hint="leave it out")
    if "sources" in kind.model_fields:
        given |= {"sources": source} if source else {}
    elif source and len(source) > 1:
        raise ConfigError(f"{len(source)} sources given, and {verb} trains on one", hint="quote a name that has spaces")
    elif source:
        given["source"] = source[0]
    settings = layered(kind, config, set_, given)
    if "source" in kind.model_fields and "source" not in settings:
        raise ConfigError("no SOURCE to train on", hint=f"try: {example}")
    return settings


def add_to(app: typer.Typer) -> None:
    app.command()(compare)
    app.command()(advise)
    app.command()(graph)
