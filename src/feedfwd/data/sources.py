"""From what a user names to text files: a file, a folder, `stdlib`, or a data set of the Hugging Face hub."""

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feedfwd.data.cache import cache_folder, read_json, write_json
from feedfwd.data.documents import FORMS, form_of
from feedfwd.errors import DataError

STDLIB = "stdlib"
# Python's own tests are two thirds of its bytes, broken on purpose in places, and missing from many installations.
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
RUN, ENVIRONMENT = "run directory", "program environment"
NO_DATA = (".md", ".py", "dataset_infos.json")  # on the hub
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.-]+)*")


@dataclass(frozen=True)
class TextSource:
    """The files of one source, in a fixed order, and what was decided in choosing them."""

    name: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def find(source: str, forms: Sequence[str] = FORMS, part: str = "train") -> TextSource:
    """The files that `source` names; a path that exists wins over a name.

    A name is `stdlib`, the running Python's standard library without its tests; or `owner/name` or `owner/name/folder`
    of the hub, of which the files of a `part` are taken where files are named so.
    """
    if not source.strip():
        raise DataError("a source without a name", hint=f"name a file, a folder, {STDLIB}, or owner/name of the hub")
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(source, path, forms)
    if path.exists():
        if not path.is_file():
            raise DataError(f"{path} is neither a file nor a folder", hint="give one that holds the text")
        if form_of(path, forms) is None:
            raise DataError(
                f"{path} is not of a form that text is read from",
                hint=f"give {', '.join(forms)}; rename it to .txt if it is plain text",
            )
        return TextSource(path.name, (path,))
    library = ".py" in forms
    if source == STDLIB and library:
        return _stdlib()
    if HUB_NAME.fullmatch(source) and form_of(path, (*forms, *FORMS)) is None:
        return _hub(source, forms, part)
    also = f"; `{STDLIB}`" if library else ""
    raise DataError(
        f"there is no file or folder {source}",
        hint=f"check the path; a source is a file or folder of {', '.join(forms)}{also}; or the hub's owner/name",
    )


def placed(source: str) -> str:
    """What a source is found by from any folder: its absolute path where it is one, else its name.

    >>> placed("stdlib"), placed("..") == str(Path.cwd().parent)
    ('stdlib', True)
    """
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def seen_from_here(source: str) -> str:
    """How a source is shown: its path from this folder on, where it is in it.

    >>> seen_from_here(placed("pyproject.toml")), seen_from_here("/etc/hosts"), seen_from_here("stdlib")
    ('pyproject.toml', '/etc/hosts', 'stdlib')
    """
    path, here = Path(source), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else source


def of_part(source: str, names: Sequence[str], part: str) -> list[str]:
    """The names of the files of a part, or all where none says that it is of one; DataError where none is of it."""
    chosen = [name for name in names if part in name.lower()]
    if not chosen and part == "test" and any("train" in name.lower() for name in names):
        raise DataError(f"{source} has no file named test beside those named train", hint="name a test file")
    return chosen or list(names)


def _folder(source: str, folder: Path, forms: Sequence[str]) -> TextSource:
    """All text files below, but for hidden ones and what programs wrote there: runs of ours and environments."""
    if _what_made(folder) == RUN:
        hint = f"name the text; to train it further: feedfwd pretrain TEXT --from {source}"
        raise DataError(f"{source} is a run directory, no text", hint=hint)
    files: list[Path] = []
    left: Counter[str] = Counter()
    for place, folders, names in os.walk(folder):
        here = Path(place)
        kept = []
        for name in folders:
            made = None if name.startswith(".") else _what_made(here / name)
            if made is not None:
                left[made] += 1
            elif not name.startswith("."):
                kept.append(name)
        folders[:] = kept
        for path in (here / name for name in names if not name.startswith(".")):
            if form_of(path, forms) is not None:
                if path.is_file():
                    files.append(path)
                else:
                    left["broken link" if path.is_symlink() else "special file"] += 1
    if not files:
        raise DataError(f"{source} holds no text files", hint=f"files of text end in {', '.join(forms)}")
    counts = ", ".join(f"{n} {plural(what, n)}" for what, n in left.items())
    notes = (f"left out of {source}: {counts}",) if counts else ()
    return TextSource(folder.resolve().name, tuple(sorted(files, key=lambda p: p.parts)), notes)


def _what_made(folder: Path) -> str | None:
    """What kind of program's folder it is, whose text files are nobody's text; None: of no known one."""
    if folder.name == "node_modules" or (folder / "pyvenv.cfg").is_file() or (folder / "conda-meta").is_dir():
        return ENVIRONMENT
    try:
        settings = (folder / "config.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return RUN if re.search(r"^\[run\]$", settings, re.MULTILINE) and "feedfwd" in settings else None


def plural(what: str, n: int) -> str:
    """
    >>> plural("run directory", 2), plural("broken link", 2), plural("run directory", 1)
    ('run directories', 'broken links', 'run directory')
    """
    if n == 1:
        return what
    return f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"


def _stdlib() -> TextSource:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted((p.relative_to(root) for p in root.rglob("*.py")), key=lambda p: p.parts)
    chosen = tuple(root / p for p in files if not NOT_LIBRARY.intersection(p.parts))
    if not chosen:
        raise DataError(f"this Python has no standard library sources in {root}", hint="give a text file or folder")
    return TextSource(STDLIB, chosen, ("stdlib: the library's .py files without its tests",))


def _hub(source: str, forms: Sequence[str], part: str) -> TextSource:
    """The files of a hub data set in the hub's cache, fetched where they aren't there.

    What files there are is asked anew each time, and remembered for when the hub can't be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    owner, name, *folder = source.split("/")
    repo, prefix = f"{owner}/{name}", "".join(f"{part}/" for part in folder)
    remembered = cache_folder() / "hub" / f"{owner}--{name}.json"
    try:
        info = HfApi().dataset_info(repo, timeout=10)
        listing, revision = [file.rfilename for file in info.siblings or ()], info.sha
        write_json(remembered, {"files": listing, "revision": revision})
    except DataError:
        raise
    except Exception as error:  # the hub's client raises what its HTTP library does, and that library has changed
        known = read_json(remembered)
        if known is None:
            raise _unreachable(source, error) from None
        listing, revision = known["files"], known["revision"]
    forms = tuple(form for form in forms if not form.startswith(NO_DATA))
    files = sorted(f for f in listing if f.startswith(prefix) and f.lower().endswith(forms) and not f.endswith(NO_DATA))
    if not files:
        raise DataError(
            f"the hub's {repo} has no text files" + (f" in {prefix}" if prefix else ""),
            hint=f"it needs files of {', '.join(forms)}",
        )
    chosen = of_part(source, [file.removeprefix(prefix) for file in files], part)
    try:
        paths = tuple(
            Path(hf_hub_download(repo, prefix + file, repo_type="dataset", revision=revision)) for file in chosen
        )
    except Exception as error:
        raise _unreachable(source, error) from None
    note = f"{source}: {len(paths):,} files of the hub"
    if left := len(files) - len(paths):
        note += f", without {left:,} that are not for {part}ing"
    return TextSource(source, paths, (note,))


def _unreachable(source: str, error: Exception) -> DataError:
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(
        f"there is no file or folder {source}, and it can't be fetched from the Hugging Face hub ({problem})",
        hint="check the name, or give a path of your own; no network is needed then",
    )
