"""A computation graph as SVG: boxes from top to bottom, forward on the left, the gradient's way back on the right."""

from html import escape
from typing import TYPE_CHECKING

from feedfwd.report.words import count
from feedfwd.study.trace import INPUT

if TYPE_CHECKING:
    from feedfwd.study.graph import Box, Graph

LEFT, BOX, RIGHT = 60, 330, 390  # the boxes' left end, their width, their right end
HEIGHT, GAP, HEAD = 36, 22, 28  # of a box, between two, of a block's title
COLUMNS = {"shape": 520, "parameters": 620, "forward": 720, "backward": 820, "kept": 920}  # right ends
WIDTH, TOP = 950, 116
STYLE = """
svg{--page:#fdfdfc;--card:#f5f5f2;--ink:#1b1c1e;--muted:#6a6d73;--rule:#d4d4ce;--first:#2a5fb4;--second:#c4661a}
@media(prefers-color-scheme:dark){svg{--page:#151618;--card:#1e2023;--ink:#e6e6e3;--muted:#9a9da3;--rule:#3d4044;
--first:#7aa7ee;--second:#eda25c}}
text{fill:var(--ink)}.m{fill:var(--muted)}.n{text-anchor:end}.b{fill:var(--card);stroke:var(--rule)}
.g{fill:none;stroke:var(--rule);stroke-dasharray:4 3}.f{fill:none;stroke:var(--first);stroke-width:1.5}
.r{fill:none;stroke:var(--second);stroke-width:1.5}.ft{fill:var(--first)}.rt{fill:var(--second)}
.l{stroke:var(--rule)}
"""


def draw(g: "Graph", title: str, shape: str) -> str:
    """The whole picture; `shape` is of what comes in."""
    tops, blocks, y = [], [], TOP + HEIGHT + GAP
    before = ""
    for box in g.boxes:
        if box.group and box.group != before:
            blocks.append((y, box))
            y += HEAD
        elif before and not box.group:
            y += 8
        before = box.group
        tops.append(y)
        y += HEIGHT + GAP
    loss = y
    out = [_text(LEFT, 34, title, size=19, bold=True)]
    about = "bytes kept for the backward pass are measured in single precision, by the plain formula"
    out.append(_text(LEFT, 56, f"FLOPs (of products) and bytes are of one {g.unit}; {about}", "m", size=12))
    out.append(_text(LEFT + 0.56 * BOX, 88, "forward ↓", "ft", size=12))
    out.append(_text(LEFT + 0.79 * BOX, 88, "↑ gradient", "rt", size=12))
    heads = {"shape": "comes out", "parameters": "parameters", "forward": "FLOPs ↓", "backward": "FLOPs ↑"} | {
        "kept": "bytes kept"
    }
    for name, head in heads.items():
        kind = {"forward": "ft", "backward": "rt"}.get(name, "m")
        out.append(_text(COLUMNS[name], 88, head, f"{kind} n", size=12))
    out += _frames(g.boxes, tops, blocks)
    out += _box(TOP, "input", "", shape, None)
    for top, box in zip(tops, g.boxes, strict=True):
        name = box.path.removeprefix(box.group).lstrip(".")
        out += _box(top, box.title, name, " × ".join(map(str, box.shape)) or "1", box)
    out += _box(loss, "loss", "", "1", None)
    out += _ways(g.boxes, [*tops, loss])
    end = loss + HEIGHT + 20
    out.append(f'<path class="l" d="M{LEFT} {end} H{COLUMNS["kept"]}"/>')
    out.append(_text(LEFT, end + 24, "in all", bold=True))
    whole = {"parameters": f"{g.parameters:,}", "forward": count(g.forward), "backward": count(g.backward)}
    for name, text in {**whole, "kept": byte_count(g.kept)}.items():
        out.append(_text(COLUMNS[name], end + 24, text, "n", bold=True))
    if g.really < 0.99 * g.kept:
        line = f"the kernels that run here keep {byte_count(g.really)}"
        out.append(_text(COLUMNS["kept"], end + 44, line, "m n", size=12))
    height = end + 64
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    font = 'font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, sans-serif" font-size="13"'
    page = f'<rect width="{WIDTH}" height="{height}" fill="var(--page)"/>'
    return "\n".join(
        [f'{head} role="img" aria-label="{escape(title)}" {font}>', f"<style>{STYLE}</style>", page, *out, "</svg>", ""]
    )


def _frames(boxes: list["Box"], tops: list[int], blocks: list[tuple[int, "Box"]]) -> list[str]:
    """A frame around each block, with its name and how often it comes."""
    out = []
    for y, first in blocks:
        last = max(top for top, box in zip(tops, boxes, strict=True) if box.group == first.group)
        height = last + HEIGHT + 8 - y
        out.append(f'<rect class="g" x="{LEFT - 8}" y="{y}" width="{BOX + 16}" height="{height}" rx="8"/>')
        out.append(_text(LEFT + 4, y + 19, f"{_span(first)} {first.kind}", "m", size=12))
    return out


def _span(box: "Box") -> str:
    """Which blocks a frame stands for."""
    name, _, last = box.group.rpartition(".")
    return f"{name}.{int(last) - box.times + 1}–{last} ({box.times} ×)" if box.times > 1 else box.group


def _box(y: int, title: str, name: str, shape: str, box: "Box | None") -> list[str]:
    out = [f'<rect class="b" x="{LEFT}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="5"/>']
    out.append(_text(LEFT + 14, y + 23, title[:38], bold=True))
    out.append(_text(RIGHT - 12, y + 23, name[-24:], "m n", size=12))
    out.append(_text(COLUMNS["shape"], y + 23, shape, "n"))
    if box is not None:
        shown = {"parameters": f"{box.parameters:,}", "forward": count(box.forward), "backward": count(box.backward)}
        for column, text in {**shown, "kept": byte_count(box.kept)}.items():
            out.append(_text(COLUMNS[column], y + 23, text if text not in ("0", "0 B") else "–", "n"))
    return out


def _ways(boxes: list["Box"], tops: list[int]) -> list[str]:
    """Arrows: between neighbours straight, past others in an arc; back to the input goes no gradient."""
    out = []
    reads = [*(box.reads for box in boxes), {len(boxes) - 1}]
    for target, sources in enumerate(reads):
        for source in sources:
            start, end = (TOP if source == INPUT else tops[source]), tops[target]
            bottom = start + HEIGHT
            if source == target - 1:
                a, b = LEFT + 0.64 * BOX, LEFT + 0.82 * BOX
                out.append(f'<path class="f" d="M{a} {bottom} V{end} m-4 -6 l4 6 l4 -6"/>')
                if source != INPUT:
                    out.append(f'<path class="r" d="M{b} {end} V{bottom} m-4 6 l4 -6 l4 6"/>')
                continue
            reach = min(18 + 5 * (target - source), 44)
            y, x = end + HEIGHT / 2, LEFT - reach
            way = f"M{LEFT} {bottom - 9} H{x + 8} q-8 0 -8 8 V{y - 8} q0 8 8 8 H{LEFT} m-6 -4 l6 4 l-6 4"
            out.append(f'<path class="f" d="{way}"/>')
            if source != INPUT:
                x = RIGHT + reach
                way = f"M{RIGHT} {y} H{x - 8} q8 0 8 -8 V{bottom - 1} q0 -8 -8 -8 H{RIGHT} m6 -4 l-6 4 l6 4"
                out.append(f'<path class="r" d="{way}"/>')
    return out


def byte_count(value: float) -> str:
    """
    >>> byte_count(96), byte_count(6400)
    ('96 B', '6.4 kB')
    """
    shown = count(value)
    return f"{shown} B" if " " not in shown else f"{shown}B"


def _text(x: float, y: float, text: str, kind: str = "", *, size: int = 13, bold: bool = False) -> str:
    attributes = (f' class="{kind}"' if kind else "") + (f' font-size="{size}"' if size != 13 else "")
    attributes += ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}"{attributes}>{escape(text)}</text>'
