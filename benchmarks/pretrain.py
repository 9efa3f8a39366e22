"""Pretraining and writing beside Hugging Face's Llama and nanoGPT's laptop setting.

    python benchmarks/pretrain.py --data FOLDER                          # everything but the long `books`
    python benchmarks/pretrain.py --part throughput --both               # and without AVX-512 and bf16 products
    python benchmarks/pretrain.py --part books --data FOLDER --minutes 15 --seeds 3
    python benchmarks/pretrain.py --part shakespeare --data FOLDER --json shakespeare.json

Parts: `throughput` (17.3 million parameters, 8 rows of 512 tokens an update: tokens a second and memory),
`shakespeare` (time to nanoGPT's score, and what 3 and 10 minutes reach), `books` (bits per byte in equal minutes),
`generate` (greedy, one text), `text` (tokenising, start, memory, from 1 to 500 MB). FOLDER holds shakespeare/input.txt
and books-en.jsonl.gz.

Each contestant runs in a process of its own, all in turn, beginning with another one each round; a ratio is taken
within a round, and given as median (least … most).
"""

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PARTS = ("throughput", "shakespeare", "generate", "text", "books")
TARGET = 1.88  # nats a character: what nanoGPT's laptop setting reaches
UPDATES = 480  # in which feedfwd reaches it, and how:
HASTE = {
    "train.steps": UPDATES,
    "data.row": 64,
    "train.batch_size": 16,
    "optimizer.lr": 0.012,
    "train.evaluate_every": UPDATES,
}
MEGABYTES = (1, 10, 100, 500)

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FEEDFWD_DATA"))
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--both", action="store_true", help="also as a machine without AVX-512 and bf16 products")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="updates timed in a round of `throughput`")
    parser.add_argument("--minutes", type=float, action="append", help="of `books` (15) and `shakespeare` (3 and 10)")
    parser.add_argument("--seeds", type=int, default=3, help="of `books`")
    parser.add_argument("--nanochat", type=Path, help="a checkout of nanochat, for `books` beside its recipe for CPUs")
    parser.add_argument("--no-llama", action="store_true", help="`books` without Llama")
    parser.add_argument("--megabytes", type=int, action="append", help=f"of `text`; not given: {MEGABYTES}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        name, arguments = json.loads(options.inside)
        print(json.dumps(CONTESTANTS[name](**arguments)))
        return
    parts = options.part or [part for part in PARTS if part != "books"]
    if options.data is None and set(parts) - {"throughput", "generate"}:
        parser.error(
            "--data FOLDER, or FEEDFWD_DATA, must name the folder that holds shakespeare/ and books-en.jsonl.gz"
        )
    columns = {"as it is": {}} | ({"without AVX-512 and bf16": AVX2} if options.both else {})
    found = {}
    for title, environment in columns.items():
        for part in parts:
            print(f"\n{part}, {title}", flush=True)
            found[f"{part}, {title}"] = MEASURED[part](environment, options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


# --- in turn --------------------------------------------------------------------------------------------------------


def call(environment: dict[str, str], name: str, **arguments: Any) -> Row:
    """What a contestant reports from a process of its own; `process` is that one's wall clock."""
    command = [sys.executable, __file__, "--inside", json.dumps([name, arguments])]
    begun = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"process": time.perf_counter() - begun}


def in_turn(contestants: dict[str, Callable[[int], Row]], rounds: int) -> dict[str, list[Row]]:
    names, found = list(contestants), {name: [] for name in contestants}
    for round_ in range(rounds):
        at = round_ % len(names)
        for name in (*names[at:], *names[:at]):
            found[name].append(contestants[name](round_))
            print(f"  round {round_ + 1} {name}: {short(found[name][-1])}", flush=True)
    return found


def short(row: Row) -> str:
    return "  ".join(
        f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})"


def ratios(found: dict[str, list[Row]], a: str, b: str, key: str) -> list[float]:
    return [x[key] / y[key] for x, y in zip(found[a], found[b], strict=True)]


def feedfwd(source: Path, *flags: str, environment: dict[str, str] | None = None, keep: Path | None = None) -> Row:
    """What `feedfwd pretrain` leaves behind; its run stays at `keep`."""
    with tempfile.TemporaryDirectory() as folder:
        run = keep or Path(folder) / "run"
        command = [sys.executable, "-m", "feedfwd.cli", "pretrain", str(source), "--run", str(run), *flags]
        begun = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"feedfwd pretrain failed:\n{done.stderr.strip()}")
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    scores, seconds = result["validation"], result["seconds"]
    kept = {key: result[key] for key in ("steps", "tokens", "parameters", "tokens_per_second")}
    return scores | {"seconds": seconds["train"], "process": time.perf_counter() - begun} | kept


# --- throughput -----------------------------------------------------------------------------------------------------


def throughput(environment: dict[str, str], options: argparse.Namespace) -> dict[str, list[Row]]:
    def contestant(name: str) -> Callable[[int], Row]:
        return lambda seed: call(environment, "updates", who=name, seed=seed, steps=options.steps)

    names = ["feedfwd", "Llama fp32", "Llama bf16", "Llama bf16 compiled", "Llama fp32 compiled"]
    if environment:  # where bf16 products are emulated nobody trains in bf16
        names = [name for name in names if "bf16" not in name]
    found = in_turn({name: contestant(name) for name in names}, options.rounds)
    for name, rows in found.items():
        rate, memory = ([row[key] for row in rows] for key in ("tokens_per_second", "megabytes"))
        print(f"  {name:20} {spread(rate, 0)} tokens/s, {spread(memory, 0)} MB")
        if name != "feedfwd":
            print(f"  {'':20} feedfwd: {spread(ratios(found, 'feedfwd', name, 'tokens_per_second'))} of its tokens/s, "
                  f"{spread(ratios(found, 'feedfwd', name, 'megabytes'))} of its memory")  # fmt: skip
    return found


def updates(who: str, seed: int, steps: int) -> Row:
    """Full updates on random tokens: the median after two, and the memory's peak beyond what it was before."""
    import pretrain_peers as peers
    import torch

    torch.manual_seed(seed)
    if who == "feedfwd":
        step = our_update(peers.SMALL, seed)
    else:
        import transformers  # noqa: F401  its modules are no part of a model's memory

        before = memory("VmRSS")
        model = peers.llama(**peers.SMALL)
        update = peers.llama_update(model, 1e-3, bf16="bf16" in who, compiled="compiled" in who)

        def batch() -> Any:
            return torch.randint(peers.SMALL["vocabulary"], (8, peers.SMALL["context"]))

        def step() -> Any:
            return update(batch(), batch(), 1.0)

    if who == "feedfwd":
        before = step()
    times = []
    for n in range(3 + steps):
        if n == 3:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # what compiling took doesn't count
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    typical = statistics.median(times[3:])
    peak = (memory("VmHWM") - before) / 1e6
    return {"tokens_per_second": 8 * peers.SMALL["context"] / typical, "ms": 1e3 * typical, "megabytes": peak}


def our_update(size: dict[str, int], seed: int) -> Callable[[], Any]:
    """The first call gives the memory before the model was built, every further one does an update."""

    def run() -> Iterator[Any]:
        import torch

        from feedfwd.data.batches import Batch
        from feedfwd.models.transformer import Transformer
        from feedfwd.train.cross_entropy import Gradients
        from feedfwd.train.loop import train
        from feedfwd.train.losses import build_loss
        from feedfwd.train.optimizers import build_optimizer
        from feedfwd.train.precision import choose, products

        yield memory("VmRSS")
        model = Transformer(**size)
        optimizer = build_optimizer(model, "muon", 3e-3, weight_decay=0.1, beta2=0.95)

        def batches() -> Iterator[Batch]:
            shape = 8, size["context"]
            while True:
                ids, targets = (torch.randint(size["vocabulary"], shape) for _ in range(2))
                yield Batch(ids, targets, torch.ones(shape))

        precision = choose("auto", "cpu", products(model, 8 * size["context"]))
        yield from train(
            model, batches(), build_loss("cross_entropy"), optimizer,
            steps=1 << 30, clip=1.0, precision=precision, gradients=Gradients(),
        )  # fmt: skip

    return run().__next__


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


# --- Shakespeare ----------------------------------------------------------------------------------------------------


def shakespeare(environment: dict[str, str], options: argparse.Namespace) -> Any:
    source = options.data / "shakespeare" / "input.txt"
    chars = ("--set", "data.tokenizer=chars")
    haste = [word for key, value in HASTE.items() for word in ("--set", f"{key}={value}")]
    if options.rounds:
        contestants: dict[str, Callable[[int], Row]] = {
            "feedfwd": lambda seed: feedfwd(
                source, *chars, "--size", "pico", "--seed", str(seed), *haste, environment=environment
            ),
            "nanoGPT's setting": lambda seed: call(environment, "characters", source=str(source), seed=seed),
        }  # fmt: skip
        found = in_turn(contestants, options.rounds)
        for name, rows in found.items():
            seconds, losses = [row["seconds"] for row in rows], [row["loss"] for row in rows]
            print(f"  {name:20} {spread(seconds, 1)} s, validation {spread(losses, 4)}")
        share = ratios(found, "nanoGPT's setting", "feedfwd", "seconds")
        missed = sum(row["loss"] > TARGET for row in found["feedfwd"])
        print(f"  feedfwd takes 1/{spread(share)} of its time; above {TARGET}: {missed} of {options.rounds}")
    longer = {}
    for minutes in options.minutes or (3, 10):
        if not minutes:
            continue
        longer[minutes] = feedfwd(source, *chars, "--minutes", str(minutes), environment=environment)
        print(f"  --minutes {minutes:g}: {short(longer[minutes])}", flush=True)
    return {"rounds": found if options.rounds else {}, "minutes": longer}


def characters(source: str, seed: int) -> Row:
    import pretrain_peers as peers

    return peers.train_characters(Path(source).read_text(encoding="utf-8"), seed)


# --- books ----------------------------------------------------------------------------------------------------------


def books(environment: dict[str, str], options: argparse.Namespace) -> dict[str, list[Row]]:
    source, minutes = options.data / "books-en.jsonl.gz", (options.minutes or [15])[0]
    with tempfile.TemporaryDirectory() as folder:

        def run_of(seed: int) -> Path:
            return Path(folder) / f"run{seed}"

        def ours(seed: int) -> Row:
            flags = ("--minutes", str(minutes), "--seed", str(seed))
            return feedfwd(source, *flags, environment=environment, keep=run_of(seed))

        def theirs(seed: int) -> Row:
            spent = found["feedfwd"][seed]["seconds"]  # with its evaluations on the way, and a little over the plan
            return call(
                environment, "books_llama", run=str(run_of(seed)), minutes=spent / 60, seed=seed,
                bf16=not environment, compiled=minutes >= 5,
            )  # fmt: skip

        def nanochat(seed: int) -> Row:
            return call(
                environment, "books_nanochat", run=str(run_of(seed)), minutes=found["feedfwd"][seed]["seconds"] / 60,
                seed=seed, checkout=str(options.nanochat), bf16=not environment,
            )  # fmt: skip

        contestants = {"feedfwd": ours, "Llama": theirs, "nanochat": nanochat}
        if options.nanochat is None:
            del contestants["nanochat"]
        if options.no_llama:
            del contestants["Llama"]
        found: dict[str, list[Row]] = {name: [] for name in contestants}
        for seed in range(options.seeds):  # the others take the tokenizer, Llama size and rows as well, from our run
            for name, contestant in contestants.items():
                found[name].append(contestant(seed))
                print(f"  seed {seed} {name}: {short(found[name][-1])}", flush=True)
    for name in list(contestants)[1:]:
        print(f"  bits per byte: feedfwd ÷ {name} {spread(ratios(found, 'feedfwd', name, 'bits_per_byte'), 3)}")
    return found


def books_nanochat(run: str, **arguments: Any) -> Row:
    import pretrain_peers as peers

    return peers.train_nanochat(Path(run), **arguments)


def books_llama(run: str, **arguments: Any) -> Row:
    import pretrain_peers as peers

    return peers.train_llama(Path(run), **arguments)


# --- generate -------------------------------------------------------------------------------------------------------


def generate(environment: dict[str, str], options: argparse.Namespace) -> Row:
    row = call(environment, "writing", rounds=max(3, options.rounds))
    print(f"  feedfwd {spread(row['ours'], 0)} tokens/s, transformers {spread(row['theirs'], 0)}; "
          f"{spread([a / b for a, b in zip(row['ours'], row['theirs'], strict=True)])} times; "
          f"{'the same' if row['same'] else 'OTHER'} tokens")  # fmt: skip
    return row


def writing(rounds: int, most: int = 200) -> Row:
    """Tokens a second of both, greedy, alternating in one process on the same weights."""
    import pretrain_peers as peers
    import torch

    from feedfwd.interop.huggingface import family_of, to_theirs
    from feedfwd.models.generate import Sampling, tokens
    from feedfwd.models.transformer import Transformer

    torch.manual_seed(0)
    model = Transformer(**peers.SMALL).eval()
    for parameter in model.parameters():  # so that one token is clearly likelier than another
        parameter.data.mul_(3) if parameter.ndim > 1 else None
    llama = peers.llama(**peers.SMALL)
    missing = llama.load_state_dict(to_theirs(family_of(model), model), strict=False)
    if set(missing.missing_keys) - {"lm_head.weight"} or missing.unexpected_keys:
        raise SystemExit(f"the weights don't fit: {missing}")
    llama.config.rms_norm_eps = model.norm_eps
    for module in llama.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = model.norm_eps
    llama.eval()
    prompt = list(range(5, 37))

    def ours() -> list[int]:
        return [
            one for (one,) in tokens(model, [prompt], most=most, sampling=Sampling(temperature=0)) if one is not None
        ]

    def theirs() -> list[int]:
        ids = torch.tensor([prompt])
        written = llama.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, min_new_tokens=most, do_sample=False,
            use_cache=True, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        return written[0, len(prompt) :].tolist()

    same = ours() == theirs()
    rates: Row = {"ours": [], "theirs": []}
    for round_ in range(2 * rounds):
        for name, writer in (("ours", ours), ("theirs", theirs))[:: 1 if round_ % 2 else -1]:
            start = time.perf_counter()
            writer()
            rates[name].append(most / (time.perf_counter() - start))
    return rates | {"same": same}


# --- text -----------------------------------------------------------------------------------------------------------


def text(environment: dict[str, str], options: argparse.Namespace) -> list[Row]:
    rows = []
    for megabytes in options.megabytes or MEGABYTES:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "corpus"
            changed(options.data / "books-en.jsonl.gz", megabytes, source)
            empty = {"FEEDFWD_CACHE": str(Path(folder) / "cache")}
            row = {"MB": megabytes} | call(environment | empty, "first_steps", source=str(source), begun=time.time())
        rows.append(row)
        print(f"  {short(row)}", flush=True)
    return rows


def changed(books: Path, megabytes: int, folder: Path) -> None:
    """So much text: the books again and again, every time with a thirtieth of their words replaced by others of theirs.

    In files of 4 MB, cut between paragraphs, so that every document is one of its own.
    """
    with gzip.open(books, "rt", encoding="utf-8") as lines:
        paragraphs = [p for line in lines for p in json.loads(line)["text"].split("\n\n")]
    draw, folder_size = random.Random(0), 0
    folder.mkdir()
    at, turn = 0, 0
    while folder_size < megabytes * 10**6:
        taken: list[str] = []
        size, limit = 0, min(4 * 10**6, megabytes * 10**6 - folder_size)
        while size < limit:
            paragraph = paragraphs[at]
            if turn:
                words = paragraph.split(" ")
                for i in range(draw.randrange(30), len(words), 30):
                    words[i] = draw.choice(words)
                paragraph = " ".join(words)
            taken.append(paragraph)
            size += len(paragraph.encode()) + 2
            at += 1
            if at == len(paragraphs):
                at, turn = 0, turn + 1
        (folder / f"{folder_size // 10**6:05}.txt").write_text("\n\n".join(taken), encoding="utf-8")
        folder_size += size


def first_steps(source: str, begun: float, steps: int = 40) -> Row:
    """Of a run with an empty cache: MB of text tokenised a second, seconds to the first update, speed, memory."""
    from feedfwd.config_pretrain import PretrainConfig
    from feedfwd.data import tokens
    from feedfwd.recipes import text as recipe
    from feedfwd.recipes.pretrain import pretrain_config

    seconds = {"tokenize": 0.0, "first": 0.0}
    plain = tokens.tokenize

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        found = plain(*arguments, **named)
        seconds["tokenize"] += time.perf_counter() - start
        return found

    class FirstStep:
        def say(self, text: str) -> None: ...

        def progress(self, step: int, total: int, text: str, unit: str = "step") -> None:
            if text.startswith("loss") and not seconds["first"]:
                seconds["first"] = time.time() - begun
                seconds["prepared"] = memory("VmHWM") / 1e6

    recipe.tokenize = timed
    config = PretrainConfig(sources=[source], size="nano").with_("train.steps", steps)
    config = config.with_("data.validation", 0.01)
    with tempfile.TemporaryDirectory() as folder:
        pretrain_config(config, Path(folder) / "run", FirstStep())
        result = json.loads((Path(folder) / "run" / "result.json").read_text(encoding="utf-8"))
    size = sum(result["bytes"].values()) / 1e6
    return {
        "tokenised MB/s": size / seconds["tokenize"],
        "first step s": seconds["first"],
        "tokens/s": result["tokens_per_second"],
        "peak MB at first step": seconds["prepared"],
        "peak MB": memory("VmHWM") / 1e6,
    }


MEASURED = {part: globals()[part] for part in PARTS}
CONTESTANTS = {
    one.__name__: one for one in (updates, characters, books_llama, books_nanochat, writing, first_steps)
}  # what runs in a process of its own

if __name__ == "__main__":
    main()
