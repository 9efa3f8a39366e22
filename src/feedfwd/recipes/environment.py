"""What a result depends on besides its settings: versions, machine, threads."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedfwd._version import __version__
from feedfwd.train.precision import Precision


def describe(device: torch.device, precision: Precision) -> dict[str, Any]:
    """For result.json; the instruction-set variables are there because they change both speed and bits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    forced = {key: os.environ[key] for key in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if key in os.environ}
    return {
        "feedfwd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": str(device),
        "precision": precision.name,
        "threads": torch.get_num_threads(),
        **forced,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
