"""Memory whose pages stay warm: what one step frees, the next one takes.

On Linux malloc gives large blocks straight back to the kernel. Touching them again costs a page fault for every 4 KiB,
up to a microsecond each, which for a layer 512 wide comes to a fifth of the time of its products. A tensor made here
rests on a block of memory that returns to a shelf when the tensor dies, whoever held it last. A GPU needs none of this:
torch keeps its memory warm there by itself.
"""

import math
import threading
import time
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 1 << 22  # bytes; malloc keeps smaller blocks warm by itself
HEAP = 32 << 20  # bytes; glibc's malloc never puts more than this on its heap, whose pages may be warm
KEEP = 60.0  # seconds that a block may lie unused, so that a change of sizes doesn't hold the old ones for ever

_idle: list[tuple[float, Tensor]] = []  # (when it came back, the block), the oldest first
_lock = threading.RLock()  # reentrant: the garbage collector may bring a block back while this very thread takes one


def warm(shape: Sequence[int], like: Tensor, least: int = LEAST, slack: float = 0.25) -> Tensor | None:
    """An uninitialised tensor of this shape, with the dtype of `like`; None where torch's own memory serves as well.

    That is on a GPU, and below `least` bytes. `slack` is the part of its own size that it may waste of a block.

    >>> first = warm((2048, 1024), like=torch.zeros(1))
    >>> address = first.data_ptr()
    >>> del first
    >>> warm((2000, 1024), like=torch.zeros(1)).data_ptr() == address
    True
    """
    size = math.prod(shape) * like.element_size()
    if size < least or like.device.type != "cpu":
        return None
    block = _take(size, int(size * (1 + slack)))
    lease = block.numpy()[:size]  # its own object: dies with the last tensor that rests on it
    weakref.finalize(lease, _put, block).atexit = False
    result: Tensor = torch.ops.aten._unsafe_view(torch.frombuffer(lease, dtype=like.dtype), shape)
    return result


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor of this shape, with the dtype and device of `like`, in warm pages where it matters."""
    out = warm(shape, like)
    return torch.empty(shape, dtype=like.dtype, device=like.device) if out is None else out


def release() -> int:
    """Give the idle blocks back to the system; returns their bytes.

    >>> _ = release()
    >>> release()
    0
    """
    with _lock:
        size = sum(block.numel() for _, block in _idle)
        _idle.clear()
    return size


def _take(size: int, most: int) -> Tensor:
    """The smallest idle block of `size` to `most` bytes, else a new one."""
    now = time.monotonic()
    with _lock:
        fits = [i for i, (_, block) in enumerate(_idle) if size <= block.numel() <= most]
        if fits:
            return _idle.pop(min(reversed(fits), key=lambda i: _idle[i][1].numel()))[1]  # of equals, the latest used
        while _idle and now - _idle[0][0] > KEEP:
            del _idle[0]
    return torch.empty(size, dtype=torch.uint8)


def _put(block: Tensor) -> None:
    with _lock:
        _idle.append((time.monotonic(), block))
