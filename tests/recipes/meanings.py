"""Queries and answers for tests of search: each sign means a word that no spelling tells."""

import json
from pathlib import Path

from feedfwd.recipes.console import Silent

SIGNS = ["akuba", "bofor", "cidem", "dunak", "elgon", "fimat", "gosur", "hebik"]
MEANT = ["w0", "x1", "y2", "z3", "u4", "v5", "s6", "t7"]
ASKED = ["where is {}", "{} please", "i need {} now", "tell me of {}", "{}", "how to {}", "any {} left", "my {} broke"]


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def pairs() -> list[dict]:
    return [
        {"query": how.format(sign), "answer": f"take {meant}"}
        for sign, meant in zip(SIGNS, MEANT, strict=True)
        for how in ASKED
    ]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)
