"""What the pages tell a user to type works as it stands: `sh` blocks run as commands, `python` blocks as programs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and line, text) of every block of a language; `text` blocks are examples with places to fill in."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{page.name}:{line}", match.group(1)))
    return found


COMMANDS = [(where, line) for where, text in blocks("sh") for line in text.splitlines() if line.startswith("feedfwd ")]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=[f"{where} {line.split('#')[0]}" for where, line in COMMANDS])
def test_commands_of_the_pages_work(where: str, line: str, tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)[1:]
    done = subprocess.run([sys.executable, "-m", "feedfwd.cli", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{where}: {done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(("where", "text"), blocks("python"), ids=[where for where, _ in blocks("python")])
def test_programs_of_the_pages_work(where: str, text: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{where}: {done.stderr}"


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_both_readmes_show_the_same_commands() -> None:
    english, chinese = (
        re.findall(r"^(?:feedfwd|make) .*?(?=\s*(?:#|$))", (ROOT / name).read_text(encoding="utf-8"), re.M)
        for name in ("README.md", "README.zh-CN.md")
    )
    assert english == chinese
