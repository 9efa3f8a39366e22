"""The text of a file, whatever its encoding, and its lines."""

import re
from pathlib import Path

from feedfwd.errors import DataError

BEYOND = re.compile(r"[^\0-\x7f]")  # ASCII


def read_text(path: Path, notes: list[str], forms: str) -> str:
    """The file's text. Another encoding than UTF-8 is guessed, and said in `notes`.

    DataError for a file that can't be read, is empty, or is no text: the hint then names the `forms` to give.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror})", hint="check the path and its permissions") from None
    if not raw.strip():
        raise DataError(f"{path} is empty", hint="check where it came from")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        notes.append("the file is UTF-16")
        return raw.decode("utf-16", errors="replace")
    for half, encoding in ((raw[1:4096:2], "utf-16-le"), (raw[:4096:2], "utf-16-be")):
        if len(half) > 8 and half.count(0) > 0.9 * len(half):  # as of Western text without a mark at its beginning
            notes.append("the file is UTF-16")
            return raw.decode(encoding, errors="replace")
    if b"\0" in raw[:65536]:
        raise DataError(f"{path} is not text: it holds zero bytes", hint=f"give {forms}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
    found = raw.decode("utf-8-sig", errors="replace")
    if 20 * (damaged := found.count("\ufffd")) < len(BEYOND.findall(found)):
        notes.append(f"the file is damaged: {damaged:,} characters that are not UTF-8, the first on line {line}")
        return found
    encoding = guess(raw)
    notes.append(f"the file is not UTF-8 (line {line}): read as {encoding}; save it as UTF-8 if it looks wrong")
    return raw.decode(encoding, errors="replace")


def guess(raw: bytes) -> str:
    """Which old encoding: Chinese where it gives common characters and next to no damage, else Western European.

    >>> guess("城市".encode("gb18030")), guess("Köln, Zürich".encode("latin-1"))
    ('gb18030', 'cp1252')
    """
    found = BEYOND.findall(raw[: 1 << 20].decode("gb18030", errors="replace"))
    common = len("".join(found).encode("gb2312", errors="ignore")) / 2
    return "gb18030" if 2 * common > len(found) and 50 * found.count("\ufffd") < len(found) else "cp1252"


def lines(text: str) -> list[str]:
    r"""The lines that are not blank. Only a line feed ends one: U+2028 and the like stand within sentences.

    >>> lines("a\u2028b\r\n\nc\n")
    ['a\u2028b', 'c']
    """
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
