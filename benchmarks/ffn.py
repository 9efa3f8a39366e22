"""The feed-forward layer beside the bare matrix products, torch's eager mode and torch.compile: time, memory, accuracy.

    python benchmarks/ffn.py                 # this machine as it is, all parts (a quarter of an hour)
    python benchmarks/ffn.py --both          # and as one without AVX-512 would run it
    python benchmarks/ffn.py --quick         # fewer rounds, the smallest size
    python benchmarks/ffn.py --part speed --size 512 --markdown speed.md --json speed.json

Columns: `native` is this machine as it is; `laptop` the same machine with ONEDNN_MAX_CPU_ISA=AVX2 and
ATEN_CPU_CAPABILITY=avx2, as one without AVX-512, AMX and bf16 products would run it; `malloc` has glibc keep its memory
(GLIBC_TUNABLES), which is eager's best setting. Each runs in a process of its own.

Every time is forward and backward, gradients set to None each round. All contenders of a row run alternating in one
process; a ratio is the median of the rounds' own ratios, with its quartiles, so that a disturbance of the machine meets
both sides. "bare" is the six products alone, each into a buffer it owns.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLUMNS = {
    "native": {},
    "laptop": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "malloc": {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"},
}
PARTS = ("speed", "tokens", "options", "memory", "accuracy")
SIZES = [(512, 1408, 4096), (1024, 2816, 2048), (2048, 5632, 1024)]  # model width, hidden width, tokens

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--column", choices=COLUMNS, action="append", help="this column; may be repeated")
    parser.add_argument("--both", action="store_true", help="the columns native and laptop")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--size", type=int, action="append", help="only this model width; may be repeated")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to spend on a row, about")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.size = min(args.seconds, 4.0), args.size or [512]
    if args.inside:
        for row in measure(args):
            print(json.dumps(row), flush=True)
        return
    columns = ["native", "laptop"] if args.both else args.column or ["native"]
    rows = [row for column in columns for row in run(column, sys.argv[1:])]
    text = "\n".join(markdown(rows))
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def run(column: str, arguments: list[str]) -> Iterator[Row]:
    """The rows of one column, from a process with its environment."""
    command = [sys.executable, __file__, *arguments, "--inside", column]
    with subprocess.Popen(command, env=os.environ | COLUMNS[column], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            row = {"column": column} | json.loads(line)
            print(" ".join(f"{key}={_short(value)}" for key, value in row.items()), file=sys.stderr, flush=True)
            yield row
    if process.returncode:
        raise SystemExit(f"the {column} column failed")


def markdown(rows: list[Row]) -> Iterator[str]:
    """A table for each part."""
    for part in dict.fromkeys(row["part"] for row in rows):
        chosen = [{key: value for key, value in row.items() if key != "part"} for row in rows if row["part"] == part]
        header = list(dict.fromkeys(key for row in chosen for key in row))
        yield from (f"\n### {part}\n", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}")
        yield from (f"| {' | '.join(_short(row.get(key, '')) for key in header)} |" for row in chosen)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---- inside a column -------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> Iterator[Row]:
    import torch

    torch.manual_seed(0)
    sizes = [size for size in SIZES if not args.size or size[0] in args.size]
    parts = args.part or PARTS
    # Where bf16 products are emulated nobody trains in bf16: this column is measured in fp32, and once in bf16.
    dtype = "fp32" if args.inside == "laptop" else "bf16"
    if "speed" in parts:
        for size in sizes:
            yield {"part": "speed"} | speed(*size, dtype, args.seconds)
        if dtype == "fp32":
            d, h, tokens = SIZES[0]  # few tokens: emulated products take seconds
            yield {"part": "speed"} | speed(d, h, tokens // 16, "bf16", args.seconds, compiled=False)
    if "tokens" in parts:
        for d, h, _ in sizes:
            for tokens in (16, 64, 256, 1024, 4096):
                if d * tokens <= 1 << 22:
                    yield {"part": "tokens"} | few_tokens(d, h, tokens, dtype, args.seconds / 3)
    if "options" in parts:
        for size in sizes:
            yield {"part": "options"} | options(*size, dtype, args.seconds)
    if "memory" in parts and args.inside == "native":
        for size in sizes:
            yield {"part": "memory"} | memory(*size)
    if "accuracy" in parts:
        for kind in ("bf16", "fp32") if args.inside == "native" else ("fp32",):
            yield {"part": "accuracy"} | accuracy(kind)


class Setting:
    """One size: the tensors, the layer, its plain twin as anyone would write it, and the bare products."""

    def __init__(self, d: int, h: int, tokens: int, dtype: str, **options: Any) -> None:
        import torch

        from feedfwd.ffn import GatedFFN

        kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        self.layer = GatedFFN(d, h, **options).to(kind)
        self.eager = plain_module(d, h, options.get("dropout", 0.0)).to(kind)
        self.x = torch.randn(tokens, d, dtype=kind).requires_grad_()
        self.dy = torch.randn(tokens, d, dtype=kind)

    def step(self, layer: Any) -> Callable[[], None]:
        def forward_backward() -> None:
            self.x.grad = None
            for parameter in layer.parameters():
                parameter.grad = None
            layer(self.x).backward(self.dy)

        return forward_backward

    def bare(self) -> Callable[[], None]:
        import torch

        x, w, v, dy = self.x.detach(), self.layer.gate_up.detach(), self.layer.down.weight.detach(), self.dy
        z, a = x @ w.T, x @ w.T[:, : v.shape[1]]
        y, da, dv, dw, dx = dy.clone(), torch.empty_like(a), torch.empty_like(v), torch.empty_like(w), dy.clone()
        dz = torch.randn_like(z)

        def products() -> None:
            torch.mm(x, w.T, out=z)
            torch.mm(a, v.T, out=y)
            torch.mm(dy, v, out=da)
            torch.mm(dy.T, a, out=dv)
            torch.mm(dz.T, x, out=dw)
            torch.mm(dz, w, out=dx)

        return products


def plain_module(d: int, h: int, dropout: float) -> Any:
    """SwiGLU with packed weights, as eager runs it."""
    import torch.nn.functional as F
    from torch import Tensor, nn

    class SwiGLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up, self.down = nn.Linear(d, 2 * h, bias=False), nn.Linear(h, d, bias=False)
            self.dropout = nn.Dropout(dropout)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            return self.down(self.dropout(F.silu(gate) * up))

    return SwiGLU()


def alternate(contenders: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each contender in each round; at least seven rounds, the first two thrown away."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()  # compiles
    names, begin, rounds = list(contenders), time.perf_counter(), 0
    while rounds < 9 or (time.perf_counter() - begin < seconds and rounds < 2000):
        # Each round begins with another one, so that nothing periodic, nor what the one before left, favours anybody.
        for name in (*names[rounds % len(names) :], *names[: rounds % len(names)]):
            start = time.perf_counter()
            contenders[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    return {name: values[2:] for name, values in times.items()}


def ratio(times: dict[str, list[float]], a: str, b: str) -> str:
    """a ÷ b, round by round: the median and its quartiles."""
    low, middle, high = statistics.quantiles([x / y for x, y in zip(times[a], times[b], strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


@contextmanager
def without_compiler() -> Iterator[None]:
    """The kernels' pointwise passes in torch's operations, as where there is no C compiler."""
    from feedfwd.ffn.kernels import function
    from feedfwd.ffn.kernels.formulas import TorchPasses

    best = function.choose
    function.choose = lambda sigma, dtype, device: (TorchPasses(sigma), "")
    try:
        yield
    finally:
        function.choose = best


def within(context: Callable[[], Any], call: Callable[[], None]) -> Callable[[], None]:
    def inside() -> None:
        with context():
            call()

    return inside


def speed(d: int, h: int, tokens: int, dtype: str, seconds: float, compiled: bool = True) -> Row:
    import torch

    s = Setting(d, h, tokens, dtype)
    contenders = {"bare": s.bare(), "ours": s.step(s.layer), "eager": s.step(s.eager)}
    contenders["no compiler"] = within(without_compiler, contenders["ours"])
    if compiled:
        torch._dynamo.reset()
        contenders["compile"] = s.step(torch.compile(s.eager))
        contenders["ours compiled"] = s.step(torch.compile(s.layer))
    if dtype == "bf16":
        wide = Setting(d, h, tokens, "fp32")
        contenders["fp32 eager"] = wide.step(wide.eager)
    times = alternate(contenders, seconds)
    row: Row = {"size": f"d{d} h{h} N{tokens} {dtype}", "rounds": len(times["bare"])}
    row |= {f"{name} ms": round(statistics.median(values), 1) for name, values in times.items()}
    row |= {f"bare ÷ {name}": ratio(times, "bare", name) for name in times if name not in ("bare", "fp32 eager")}
    return row | {
        f"{name} ÷ ours": ratio(times, name, "ours") for name in times if name in ("eager", "compile", "fp32 eager")
    }


def few_tokens(d: int, h: int, tokens: int, dtype: str, seconds: float) -> Row:
    s = Setting(d, h, tokens, dtype)
    times = alternate({"ours": s.step(s.layer), "eager": s.step(s.eager)}, seconds)
    row: Row = {"size": f"d{d} h{h} N{tokens} {dtype}", "rounds": len(times["ours"])}
    row |= {f"{name} ms": round(statistics.median(values), 3) for name, values in times.items()}
    return row | {"ours ÷ eager": ratio(times, "ours", "eager")}


def options(d: int, h: int, tokens: int, dtype: str, seconds: float) -> Row:
    """What recomputing, dropout, accumulation and a dense layer cost, each beside the same thing in eager."""
    from feedfwd.ffn import DenseFFN, plain

    s = Setting(d, h, tokens, dtype)
    again, dropped = Setting(d, h, tokens, dtype, recompute=True), Setting(d, h, tokens, dtype, dropout=0.1)
    relu = DenseFFN(d, h).to(s.x.dtype)

    def adding(layer: Any) -> Callable[[], None]:
        layer(s.x).backward(s.dy)
        return lambda: layer(s.x).backward(s.dy)

    contenders = {
        "ours": s.step(s.layer),
        "recompute": again.step(again.layer),
        "dropout": dropped.step(dropped.layer),
        "eager dropout": dropped.step(dropped.eager),
        "accumulate": adding(Setting(d, h, tokens, dtype).layer),
        "eager accumulate": adding(Setting(d, h, tokens, dtype).eager),
        "relu": s.step(relu),
        "eager relu": within(plain, s.step(relu)),
    }
    times = alternate(contenders, seconds)
    row: Row = {"size": f"d{d} h{h} N{tokens} {dtype}", "rounds": len(times["ours"])}
    row["recompute ÷ ours"] = ratio(times, "recompute", "ours")
    return row | {
        f"{name}: ours ÷ eager": ratio(times, name, f"eager {name}") for name in ("dropout", "accumulate", "relu")
    }


def memory(d: int, h: int, tokens: int) -> Row:
    """Bytes a token, in bf16: kept, by torch's hooks; held after the forward pass, and at the peak, by the process.

    Held is a layer's share of what the process grows by in applying eight after a first. Each peak, of forward and
    backward, is a fresh process's high-water mark less its memory before, less the weights' gradients.
    """
    tokens *= 4  # so that what is small beside the activations doesn't count
    row: Row = {"size": f"d{d} h{h} N{tokens} bf16", "2d+4h": 2 * d + 4 * h}
    for who in ("ours", "recompute", "eager", "compile"):
        command = [sys.executable, __file__, "--inside", "peak", "--part", "memory"]
        environment = os.environ | {"FFN_PEAK": json.dumps([who, d, h, tokens])}
        seen = json.loads(
            subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        )
        row |= {f"{who} {what}": seen[what] for what in ("kept", "held", "peak")}
    return row | {"peak: ours ÷ eager": row["ours peak"] / row["eager peak"]}


def peak(who: str, d: int, h: int, tokens: int) -> Row:
    import torch

    from feedfwd.ffn.kernels import pages

    s = Setting(d, h, tokens, "bf16", recompute=who == "recompute")
    layer = s.layer if who in ("ours", "recompute") else torch.compile(s.eager) if who == "compile" else s.eager
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    few = s.x.detach()[:64].requires_grad_()
    layer(few).backward(s.dy[:64])  # what torch and oneDNN set up once
    layer(few).backward(s.dy[:64])
    if who == "compile":
        torch._dynamo.mark_dynamic(s.x, 0)
    for parameter in layer.parameters():
        parameter.grad = None
    pages.release()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the high-water mark
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(s.x)
    y.backward(s.dy)
    grads = sum(p.grad.nbytes for p in layer.parameters() if p.grad is not None)
    highest = status("VmHWM") - before - grads
    del y
    s.x.grad = None
    layer.zero_grad()
    pages.release()
    ctypes.CDLL(None).malloc_trim(0)
    deep = layer(s.x)
    before = status("VmRSS")
    for _ in range(8):
        deep = layer(deep)
    held = (status("VmRSS") - before) / 8
    return {"kept": sum(kept.values()) // tokens, "held": round(held / tokens), "peak": round(highest / tokens)}


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def accuracy(dtype: str) -> Row:
    """RMS error against fp64, ours ÷ eager's: the output and each gradient."""
    import torch

    s = Setting(512, 1408, 512, dtype)
    s.eager.gate_up.weight.data.copy_(s.layer.gate_up.data)
    s.eager.down.weight.data.copy_(s.layer.down.weight.data)

    def results(layer: Any, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

    ours, eager = results(s.layer, s.x, s.dy), results(s.eager, s.x, s.dy)
    exact = results(s.eager.double(), s.x.detach().double().requires_grad_(), s.dy.double())
    row: Row = {"size": f"d512 h1408 N512 {dtype}"}
    for name, a, b, c in zip(("y", "dx", "d gate_up", "d down"), ours, eager, exact, strict=True):
        errors = [(t.double() - c).square().mean().sqrt().item() for t in (a, b)]
        row[f"{name}: ours ÷ eager"] = round(errors[0] / errors[1], 3)
    return row


if __name__ == "__main__":
    if "FFN_PEAK" in os.environ:
        print(json.dumps(peak(*json.loads(os.environ["FFN_PEAK"]))))
    else:
        main()
