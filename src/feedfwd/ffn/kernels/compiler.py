"""C files of the package, compiled at first use where the machine has a compiler, and kept in the user's cache folder.

That takes under a second. Without a compiler nothing is lost but time: all that is written in C here has a plain twin.
FEEDFWD_NATIVE=0 switches it off.
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

import torch

# The vector units that torch itself uses here, so that ATEN_CPU_CAPABILITY holds for what is compiled too.
UNITS = {"AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"), "AVX2": ("-march=x86-64-v3",)}
SHARED = [Path(__file__).with_name(name) for name in ("lanes.c", "activations.c")]  # which the others include
FLAGS = (f"-I{SHARED[0].parent}", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")


@functools.cache
def library(source: Path, definitions: tuple[str, ...] = ()) -> tuple[ctypes.CDLL | None, str]:
    """`source` compiled with these -D options, or taken from the cache; or None and why there is none."""
    command, reason = toolchain()
    if reason:
        return None, reason
    command = (*command, *definitions)
    try:
        texts = (path.read_text("utf-8") for path in (source, *SHARED))
        key = hashlib.sha256("\0".join((*command, platform.machine(), *texts)).encode()).hexdigest()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedfwd" / "kernels"
        target = folder / f"{key[:32]}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=folder) as fresh:  # so that two processes never see half a file
                built = Path(fresh) / "built.so"
                subprocess.run(
                    (*command, str(source), "-lm", "-o", str(built)), check=True, capture_output=True, timeout=120
                )
                built.replace(target)
        return ctypes.CDLL(str(target)), ""
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or b""
        return None, f"compiling {source.name} failed: {said.decode(errors='replace').strip()[:200] or error}"


@functools.cache
def toolchain() -> tuple[tuple[str, ...], str]:
    """The compiler's command up to the source, or why there is none."""
    if os.environ.get("FEEDFWD_NATIVE", "1") == "0":
        return (), "FEEDFWD_NATIVE=0"
    if platform.system() != "Linux":
        return (), f"C is compiled on Linux only, this is {platform.system()}"
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
