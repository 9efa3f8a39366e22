"""`feedfwd info` and `feedfwd runs`: what there is, without training anything."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.table import Table

from feedfwd.checkpoint import Run, list_runs
from feedfwd.config import FitConfig, overrides, parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.documents import form_of
from feedfwd.data.sources import HUB_NAME, STDLIB, find, plural, seen_from_here
from feedfwd.errors import ConfigError, FeedfwdError
from feedfwd.recipes.console import Terminal
from feedfwd.recipes.verbs import TASKS
from feedfwd.report.words import duration, score, word


def info(
    what: str | None,
    terminal: Terminal,
    *,
    settings: bool = False,
    pairs: Sequence[str] = (),
    data_dir: Path | None = None,
) -> None:
    """Tell of a run, a source, a layer's cost, or the settings, whichever was asked for."""
    if settings:
        show_settings(terminal)
    elif what is None and pairs:
        show_layer(pairs, terminal)
    elif what is None:
        raise ConfigError("nothing to tell of", hint="give a run or a source, or --settings")
    elif (Path(what) / "config.toml").is_file():
        show_run(Run.open(Path(what)), terminal)
    else:
        show_source(what, terminal, data_dir)


def show_settings(terminal: Terminal) -> None:
    from feedfwd.config_instruct import InstructConfig
    from feedfwd.config_retrieval import EmbedConfig, RankConfig

    tasks: dict[str, type[BaseModel]] = {"instruct": InstructConfig, "embed": EmbedConfig, "rank": RankConfig}
    kinds: dict[str, type[BaseModel]] = {"fit": FitConfig, "finetune": FinetuneConfig, "pretrain": PretrainConfig}
    kinds |= {f"finetune --task {task}": kind for task, kind in tasks.items()}
    for verb, kind in kinds.items():
        terminal.say(f"# feedfwd {verb}")
        for name, default, meaning in _rows(kind):
            terminal.say(f"{name}={default}" + (f"  # {meaning}" if meaning else ""))


def _rows(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, Any, str]]:
    rows = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += _rows(field.annotation, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else field.get_default(call_default_factory=True)
            rows.append((prefix + name, "" if default is None else default, field.description or ""))
    return rows


def show_run(run: Run, terminal: Terminal) -> None:
    verb = str(run.about().get("verb"))
    about = {"pretrain": _about_text, "finetune": _about_labelled, **dict.fromkeys(TASKS, _about_task)}
    for line in about.get(verb, _about_fit)(run):
        terminal.say(line)
    if not run.finished:
        step = run.saved_step()
        where = f"saved at step {step}" if step is not None else "no state saved yet"
        command = "finetune" if verb in TASKS else verb
        terminal.say(f"unfinished ({where}); go on with: feedfwd {command} --resume {run.path}")
        return
    result = run.read_json(run.result_file)
    for line in _summary(verb)(result):
        terminal.say(line)
    if (adapter := run.path / "adapter.safetensors").is_file():
        size = adapter.stat().st_size / 1e6
        terminal.say(f"adapters as trained: {adapter.name}, {size:.1f} MB; feedfwd export {run.path} --to peft")
    terminal.say(f"{result['parameters']:,} parameters; repeat with: {result['command']}")
    terminal.say(f"report: {run.report_file}")


def _summary(verb: str) -> Callable[[Mapping[str, Any]], list[str]]:
    """What says a run's result in words."""
    match verb:
        case "pretrain":
            from feedfwd.recipes.say_text import summary
        case "instruct":
            from feedfwd.recipes.instruct import summary
        case "embed" | "rank":
            from feedfwd.recipes.retrieval import summary
        case _:
            from feedfwd.recipes.say import summary
    return summary


def _about_fit(run: Run) -> list[str]:
    config = parse(FitConfig, run.settings())
    hidden, lr = "-".join(map(str, config.model.hidden)), config.optimizer.lr
    rate = "rate not settled yet" if lr is None else f"rate {lr:.3g}"
    return [
        f"{run.path}: feedfwd fit {config.source}, seed {config.seed}",
        f"hidden {hidden}, {config.ffn.activation}; {config.optimizer.name}, {rate}",
    ]


def _about_labelled(run: Run) -> list[str]:
    config = parse(FinetuneConfig, run.settings())
    b, what = config.bag, f"from {config.pretrained}, method {config.method}"
    if config.pretrained is None:
        what = f"bag of n-grams, {b.buckets:,} buckets, {f'{b.width} wide' if b.width else 'a number for each class'}"
    return [
        f"{run.path}: feedfwd finetune {config.source}, seed {config.seed}",
        f"{what}; rate {config.optimizer.lr:.3g}",
    ]


def _about_task(run: Run) -> list[str]:
    """Of a task of `finetune` with settings of its own."""
    said = run.settings()
    return [
        f"{run.path}: feedfwd finetune {said['source']} --task {run.about()['verb']}, seed {said['seed']}",
        f"from {said.get('pretrained', 'scratch')}, method {said['method']}; rate {said['optimizer']['lr']:.3g}",
    ]


def _about_text(run: Run) -> list[str]:
    config = parse(PretrainConfig, run.settings())
    m, f, rate = config.model, config.ffn, config.optimizer.lr
    begun = "" if config.pretrained is None else f" --from {seen_from_here(config.pretrained)}, method {config.method}"
    return [
        f"{run.path}: feedfwd pretrain {' '.join(map(seen_from_here, config.sources))}{begun}, seed {config.seed}",
        f"{m.depth} layers, {m.width} wide, {f.activation} {f.hidden} wide; {config.optimizer.name}, rate {rate:.3g}",
    ]


def show_source(source: str, terminal: Terminal, data_dir: Path | None) -> None:
    from feedfwd.data.readers import load
    from feedfwd.data.table_files import is_table

    if is_table(source):
        show_table(source, terminal)
        return
    path = Path(source).expanduser()
    if source == STDLIB or (path.is_file() and form_of(path) is not None):
        show_text(source, terminal)
        return
    try:
        train, test = load(source, data_dir=data_dir)
    except FeedfwdError:
        hub = HUB_NAME.fullmatch(source) is not None and not path.exists()
        if not hub and not (path.is_dir() and holds_text(source)):
            raise
        show_text(source, terminal)
        return
    terminal.say(train.describe())
    terminal.say(
        f"test part of its own: {len(test):,} examples" if test else "no test part of its own: one is split off"
    )
    if train.classes is not None:
        counts = train.targets.bincount(minlength=len(train.classes)).tolist()
        shown = [f"{name}: {n:,}" for name, n in zip(train.classes, counts, strict=True)]
        terminal.say("classes: " + ", ".join(shown[:30]) + (" …" if len(shown) > 30 else ""))
    else:
        y = train.targets
        terminal.say(f"target: mean {y.mean():.4g}, standard deviation {y.std():.4g}, {y.min():.4g} … {y.max():.4g}")
    x = train.inputs.float()
    terminal.say(f"inputs: mean {x.mean():.4g}, standard deviation {x.std():.4g}, {x.min():.4g} … {x.max():.4g}")
    for note in train.notes:
        terminal.say(f"note: {note}")


def show_text(source: str, terminal: Terminal) -> None:
    """How much text there is, and how `pretrain` would split it."""
    from feedfwd.data.corpus import Corpus

    corpus = Corpus([source])
    terminal.say(corpus.describe())
    n = len(corpus.files)
    total = corpus.bytes_of("train") + corpus.bytes_of("validation")
    terminal.say(
        f"{n:,} {plural('file', n)}, {total:,} bytes of text as UTF-8; feedfwd pretrain {source} learns from it"
    )
    for note in corpus.notes:
        terminal.say(f"note: {note}")


def holds_text(folder: str) -> bool:
    try:
        return bool(find(folder).files)
    except FeedfwdError:
        return False


def show_table(source: str, terminal: Terminal) -> None:
    """The columns of a table with their types, before a target is chosen."""
    from feedfwd.data.columns import clean, share, typed
    from feedfwd.data.table_files import read_rows

    rows = read_rows(source)
    terminal.say(f"{source}: {len(rows.frame):,} rows of {rows.frame.width:,} columns; --target names what to predict")
    for column in rows.frame.get_columns():
        cleaned = clean(column)
        found = typed(cleaned)
        absent = f", {share(cleaned.null_count(), len(cleaned))} missing" if cleaned.null_count() else ""
        examples = ", ".join(map(str, found.values.drop_nulls().unique(maintain_order=True).head(4).to_list()))
        terminal.say(f"  {column.name}: {found.kind}, {cleaned.n_unique():,} values{absent}: {examples}")
    for note in rows.notes:
        terminal.say(f"note: {note}")


def show_layer(pairs: Sequence[str], terminal: Terminal) -> None:
    from feedfwd.ffn.accounting import describe

    config = parse(FitConfig, {"source": "", **overrides(pairs)})
    terminal.say(describe(config.ffn, config.model.hidden[0], config.model.hidden[-1]))


def list_all(folder: Path, terminal: Terminal) -> None:
    """A row for each run of a folder; what can't be read is said, not fatal."""
    runs = list_runs(folder)
    if not runs:
        terminal.say(f"no runs in {folder}/; `feedfwd fit digits` makes one")
        return
    table = Table("run", "source", "test score", "trained in", "state", box=None, pad_edge=False)
    for run in runs:
        try:
            table.add_row(*_row(run))
        except FeedfwdError as error:
            table.add_row(str(run.path), "", "", "", error.message)
    terminal.console.print(table)


def _row(run: Run) -> tuple[str, ...]:
    run = Run.open(run.path)
    settings = run.settings()
    source = str(settings.get("source") or "+".join(map(seen_from_here, settings.get("sources", []))))
    if not run.finished:
        return str(run.path), source, "", "", "unfinished"
    result = run.read_json(run.result_file)
    part = "test" if result.get("test") else "validation"
    if not result[part]:
        return str(run.path), source, "", duration(result["seconds"]["train"]), "finished"
    name = next(iter(result[part]))
    if result["task"] == "language":
        name = "bits_per_byte" if "bits_per_byte" in result[part] else "loss"
    value, n = result[part][name], result["sizes"][part]
    shown = f"{word(name).label} {score(name, value, n)}"
    return str(run.path), source, shown, duration(result["seconds"]["train"]), "finished"
