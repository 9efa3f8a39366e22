"""The size dial: one word for width, depth, heads and hidden width."""

from dataclasses import dataclass

from feedfwd.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Size:
    """Of a Transformer; `hidden` is for a gated feed-forward layer, of which a dense one takes 3/2."""

    width: int
    depth: int
    heads: int
    hidden: int

    def parameters(self, vocabulary: int, *, tied: bool = True) -> int:
        """Of a model without biases: attention 4W², gated feed-forward 3WH, two norms a block, and the embedding.

        >>> round(SIZES["small"].parameters(8192) / 1e6, 1)
        17.3
        """
        block = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width
        return self.depth * block + self.width + vocabulary * self.width * (1 if tied else 2)


# Heads are 64 wide (up to micro: 32), hidden widths 8/3 of the width, rounded to 64.
SIZES: dict[str, Size] = {
    "pico": Size(128, 2, 4, 384),
    "nano": Size(128, 4, 4, 384),
    "micro": Size(192, 4, 6, 512),
    "tiny": Size(256, 6, 4, 704),
    "small": Size(384, 8, 6, 1024),
    "medium": Size(512, 12, 8, 1408),
    "base": Size(768, 12, 12, 2048),
    "large": Size(1024, 24, 16, 2752),
    "xl": Size(2048, 24, 32, 5504),
}


def size(name: str) -> Size:
    """
    >>> size("small")
    Size(width=384, depth=8, heads=6, hidden=1024)
    """
    if name not in SIZES:
        raise ConfigError(f"unknown size {name!r}", hint=nearest(name, SIZES))
    return SIZES[name]


def fitting(tokens: int, vocabulary: int, *, per_parameter: float = 20.0) -> str:
    """The largest size that so many training tokens can fill, 20 a parameter; Hoffmann et al. 2022, arXiv 2203.15556.

    >>> fitting(400_000_000, vocabulary=8192)
    'small'
    """
    fits = [name for name, s in SIZES.items() if s.parameters(vocabulary) * per_parameter <= tokens]
    return fits[-1] if fits else next(iter(SIZES))
