"""The pointwise passes in C, compiled where the machine has a compiler, in one sweep over memory each.

torch's own operations (`formulas`) need seven sweeps where C needs one, which at a width of 512 is worth a tenth of the
layer's time. `pointwise.c` is compiled at first use, in under a second, for one activation and precision, and kept in
the user's cache folder. Without a compiler nothing is lost but that time. FEEDFWD_NATIVE=0 switches it off.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedfwd.ffn.kernels.formulas import FROM_OUTPUT, Dropout, blocks

SIGMA = ("identity", "relu", "relu2", "sigmoid", "silu", "gelu", "gelu_tanh")
DTYPES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}
# The vector units that torch itself uses here, so that ATEN_CPU_CAPABILITY holds for these passes too.
UNITS = {"AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"), "AVX2": ("-march=x86-64-v3",)}
FLAGS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
ALONE = 1 << 15  # elements: below, waking a second thread costs more than it saves

_p, _i, _l, _f = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float


class NativePasses:
    """The passes of one activation and precision, compiled."""

    name = "compiled C"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("gated_forward", "gated_backward", "dense_forward", "dense_backward"):
            getattr(library, name).argtypes = (_p, _p, _p, _i, _f, _l, _l, _i)
        if hasattr(library, "output_backward"):
            library.output_backward.argtypes = (_p, _p, _f, _l, _l, _i)

    def gated_forward(self, gu: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.gated_forward, gu, a, dropout)

    def gated_backward(self, gu: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.gated_backward, gu, da, dropout)

    def dense_forward(self, z: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.dense_forward, z, a, dropout)

    def dense_backward(self, z: Tensor, da: Tensor, dropout: Dropout | None) -> None:
        self._sweep(self._library.dense_backward, z, da, dropout)

    def output_backward(self, a: Tensor, da: Tensor, scale: float) -> None:
        n, h = a.shape
        self._library.output_backward(a.data_ptr(), da.data_ptr(), scale, n, h, _threads(n * h))

    @staticmethod
    def _sweep(sweep: Any, z: Tensor, a: Tensor, dropout: Dropout | None) -> None:
        n, h = a.shape
        if dropout is None:
            sweep(z.data_ptr(), a.data_ptr(), None, 0, 1.0, n, h, _threads(n * h))
            return
        for rows, drop in blocks(a, dropout):
            assert drop is not None
            n = len(drop.bits)
            pointers = z[rows].data_ptr(), a[rows].data_ptr(), drop.bits.data_ptr()
            sweep(*pointers, drop.threshold, drop.scale, n, h, _threads(n * h))


def _threads(elements: int) -> int:
    return torch.get_num_threads() if elements >= ALONE else 1


def passes(sigma: str, dtype: torch.dtype) -> tuple[NativePasses | None, str]:
    """The compiled passes, or None and why they can't serve."""
    if sigma not in SIGMA:
        return None, f"{sigma} is not written in C"
    if dtype not in DTYPES:
        return None, f"{str(dtype).removeprefix('torch.')} is not written in C"
    return _library(sigma, dtype)


@functools.cache
def _toolchain() -> tuple[tuple[str, ...], str]:
    """The compiler's command up to the source, or why there is none."""
    if os.environ.get("FEEDFWD_NATIVE", "1") == "0":
        return (), "FEEDFWD_NATIVE=0"
    if platform.system() != "Linux":
        return (), f"C passes are for Linux, this is {platform.system()}"
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "cc", "clang")), "")
    if not compiler:
        return (), "there is no C compiler"
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() == "x86_64" and capability not in UNITS:
        return (), f"torch uses no vector units here ({capability})"
    # A second OpenMP runtime beside torch's would fight with it for the cores: link with the very one it has loaded.
    loaded = re.findall(r"(/\S*libgomp\S*)", Path("/proc/self/maps").read_text(encoding="utf-8"))
    if not loaded:
        return (), "torch's threads are not GNU OpenMP's"
    return (*compiler.split(), *FLAGS, *UNITS.get(capability, ()), loaded[0]), ""


@functools.cache
def _library(sigma: str, dtype: torch.dtype) -> tuple[NativePasses | None, str]:
    """Compile `pointwise.c`, or take it from the cache; the passes, or why there are none."""
    command, reason = _toolchain()
    if reason:
        return None, reason
    source = Path(__file__).with_name("pointwise.c")
    output = (f"-DOUTPUT={sigma}_output",) if sigma in FROM_OUTPUT else ()
    command = (*command, f"-DSIGMA={sigma}", *output, *DTYPES[dtype])
    try:
        key = hashlib.sha256("\0".join((*command, platform.machine(), source.read_text("utf-8"))).encode()).hexdigest()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedfwd" / "kernels"
        target = folder / f"{key[:32]}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=folder) as fresh:  # so that two processes never see half a file
                built = Path(fresh) / "pointwise.so"
                subprocess.run((*command, str(source), "-o", str(built)), check=True, capture_output=True, timeout=120)
                built.replace(target)
        return NativePasses(ctypes.CDLL(str(target))), ""
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        said = getattr(error, "stderr", b"") or b""
        return None, f"compiling the C passes failed: {said.decode(errors='replace').strip()[:200] or error}"
