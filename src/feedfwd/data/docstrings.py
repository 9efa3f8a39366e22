"""The running Python's docstrings with the module each belongs to: real labelled texts that need no download."""

import ast
import functools
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from feedfwd.data.sources import STDLIB, find

DOCSTRINGS = "docstrings"
FEWEST = 20  # docstrings of a module, below which it is left out
SHORTEST = 4  # words of a docstring
PROGRAMS = {"idlelib", "lib2to3", "turtledemo"}  # stand in the library, but nobody imports them
HIDDEN = "_"  # stands where a name would give the module away


@functools.cache
def docstrings() -> tuple[list[str], list[str]]:
    """Descriptions and the top-level modules they belong to, in the order of the files.

    The names of the module, of the packages it stands in and of the thing described are hidden, in whatever case they
    are written; private modules, modules with few descriptions, and what stands in the library twice are left out.
    """
    texts: list[str] = []
    modules: list[str] = []
    seen: set[str] = set()
    for place, name, description in _found():
        text = hide(description, {*place, name})
        if len(re.findall(r"\w+", text.replace(HIDDEN, " "))) < SHORTEST or text in seen:
            continue
        seen.add(text)
        texts.append(text)
        modules.append(place[0])
    count = Counter(modules)
    kept = [i for i, module in enumerate(modules) if count[module] >= FEWEST]
    return [texts[i] for i in kept], [modules[i] for i in kept]


def hide(text: str, names: set[str]) -> str:
    """The text on one line, its whole words that are one of `names` replaced.

    >>> hide("Read a ZipFile, or a\\n file in it; see zipfile.", {"zipfile"})
    'Read a _, or a file in it; see _.'
    """
    # longest first, so that a name isn't left in half where another begins it
    words = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)) if len(name) > 1)
    if words:
        text = re.sub(rf"(?<!\w)(?:{words})(?!\w)", HIDDEN, text, flags=re.IGNORECASE)
    return " ".join(text.split())


def _found() -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Every docstring: its module's dotted name in parts, the name of what it describes, and itself."""
    files = find(STDLIB).files
    root = Path(ast.__file__).parent
    for file in files:
        if not file.is_relative_to(root):
            continue
        *folders, stem = file.relative_to(root).with_suffix("").parts
        place = (*folders, stem) if stem != "__init__" else tuple(folders)
        if (
            not place
            or place[0] in PROGRAMS
            or place[0].startswith("_")
            or not all(part.isidentifier() for part in place)
        ):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's strings
            try:
                tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):
                continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                description = ast.get_docstring(node)
                if description:
                    yield place, getattr(node, "name", place[-1]), description
