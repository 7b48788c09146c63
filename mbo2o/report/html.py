"""What all pages share: the frame, the look in light and dark, tables, and figures inside the page.

A page is one file without scripts, and asks for nothing from elsewhere. Its pictures are SVG inside the page,
whose colours follow the reader's mode; each also lies beside the page as SVG and PNG in light colours.
"""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

STYLE = """
:root{color-scheme:light dark;--ink:#222;--dim:#666;--line:#ddd;--back:#fff;--code:#f3f5f7;--mark:#fff4d6}
@media (prefers-color-scheme:dark){
:root{--ink:#ddd;--dim:#a0a0a0;--line:#444;--back:#16181b;--code:#22262b;--mark:#3a3320}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:1240px;margin:2rem auto;padding:0 1rem}
body{color:var(--ink);background:var(--back)}
h1,h2,h3,p,li,summary{overflow-wrap:anywhere} h1{margin-bottom:0;line-height:1.25} h2{margin-top:2.5rem}
.sub,figcaption,.note{color:var(--dim)} .warn{background:var(--mark);padding:.5rem .8rem}
p,figure,details{max-width:1000px} figure{margin:0} figure+figure{margin-top:1rem}
.picture{overflow-x:auto} .picture svg{display:block;width:100%;height:auto;min-width:20rem}
.narrow{display:none}
.picture svg text{fill:var(--ink);font-family:system-ui,sans-serif}
.table{overflow-x:auto;max-width:100%;background:
linear-gradient(to right,var(--back) 40%,transparent) left/2.5rem 100% no-repeat local,
linear-gradient(to left,var(--back) 40%,transparent) right/2.5rem 100% no-repeat local,
linear-gradient(to right,var(--line),transparent) left/1rem 100% no-repeat scroll,
linear-gradient(to left,var(--line),transparent) right/1rem 100% no-repeat scroll}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .6rem;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left;padding-left:0;white-space:normal;min-width:7rem}
td.word,th.word{text-align:left}
.words td,.words th{text-align:left;white-space:normal} td small{color:var(--dim)}
tr{border-bottom:1px solid var(--line)} th{vertical-align:bottom;white-space:normal}
pre{background:var(--code);padding:1rem;overflow:auto}
@media (max-width:600px){body{margin:1rem auto} h1{font-size:1.3rem} h2{font-size:1.2rem}
td,th{padding:.3rem .5rem;font-size:.9rem} .wide{display:none} .narrow{display:block}}
"""
"""The look of every page; `document` adds the colours of its pictures."""
HEAD = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
BACK = "#16181b"
"""The background in the dark."""
COLOUR = re.compile(r"((?:fill|stroke): )(#[0-9a-f]{6})\b")


def document(title: str, body: Iterable[str]) -> str:
    """A whole page. Pictures in `body` name their colours as `var(--cRRGGBB)`; here they get their values."""
    text = "".join(body)
    colours = sorted(set(re.findall(r"var\(--c([0-9a-f]{6})\)", text)))
    light = "".join(f"--c{x}:#{x};" for x in colours)
    dark = "".join(f"--c{x}:{in_the_dark(f'#{x}')};" for x in colours)
    style = f"{STYLE}:root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return (
        f'<!doctype html><html lang="en"><head>{HEAD}<title>{escape(title)}</title>'
        f"<style>{style}</style></head><body>{text}</body></html>\n"
    )


def in_the_dark(colour: str) -> str:
    """The colour `#rrggbb` as it is drawn on a dark page.

    Light areas and greys change places with the ink; other colours get lighter until they stand out.
    """
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, light, full = colorsys.rgb_to_hls(red, green, blue)
    if colour == "#ffffff":
        return BACK
    if light > 0.8 or full < 0.12:
        return _hex(hue, min(0.87, 0.1 + 0.8 * (1 - light)), min(full, 0.3))
    while _contrast(_hex(hue, light, full)) < 4.5 and light < 0.9:
        light += 0.02
    return _hex(hue, light, full)


def _hex(hue: float, light: float, full: float) -> str:
    return "#" + "".join(f"{round(255 * x):02x}" for x in colorsys.hls_to_rgb(hue, light, full))


def _luminance(colour: str) -> float:
    """The relative luminance of `#rrggbb`, as the accessibility guidelines of the web (WCAG 2) define it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(colour: str) -> float:
    """The contrast of a colour with the dark background, from 1 to 21."""
    return (_luminance(colour) + 0.05) / (_luminance(BACK) + 0.05)


def picture(draw: Callable[[bool], Figure], path: Path, heading: str, caption: str) -> str:
    """Write a figure as `path` (PNG) and as SVG beside it, and return it as a part of a page.

    `draw` makes it for a wide page, or, given True, for a narrow one. The page has both and shows one.
    """
    wide = draw(False)
    wide.savefig(path, format="png", dpi=150)
    text = _svg(wide, path.stem)
    path.with_suffix(".svg").write_text(text, encoding="utf-8")
    parts = {"wide": text, "narrow": _svg(draw(True), f"{path.stem}-narrow")}
    shown = (f'<div class="picture {k}">{_inside(x, heading)}</div>' for k, x in parts.items())
    return f"<figure>{''.join(shown)}<figcaption>{escape(caption)}</figcaption></figure>"


def _svg(figure: Figure, salt: str) -> str:
    """A figure as SVG, the same text each time."""
    drawn = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(drawn, format="svg", metadata=nothing)
    return drawn.getvalue()


def _inside(text: str, heading: str) -> str:
    """An SVG as a part of a page, whose colours `document` defines."""
    inside = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", text, flags=re.S)
    inside = COLOUR.sub(lambda m: f"{m[1]}var(--c{m[2][1:]})", inside)
    return inside.replace("<svg ", f'<svg role="img" aria-label="{escape(heading)}" ', 1)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: bool = False) -> str:
    """A table that scrolls by itself where the page is narrow; `words`: its cells are text, not numbers.

    A shadow at an edge says that there is more in that direction. A column of words begins at the left.
    """
    lines = [list(row) for row in rows]
    texts = [i > 0 and all(re.match(r"[^\W\d]", row[i]) for row in lines) for i in range(len(head))]
    marks = [' class="word"' if text else "" for text in texts]
    first = "".join(f"<th{mark}>{escape(x)}</th>" for x, mark in zip(head, marks, strict=True))
    cells = (
        "".join(f"<td{mark}>{_cell(x, words)}</td>" for x, mark in zip(row, marks, strict=True))
        for row in lines
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    kind = ' class="words"' if words else ""
    return f'<div class="table"><table{kind}><tr>{first}</tr>{body}</table></div>'


def _cell(text: str, words: bool) -> str:
    """A cell's text: an interval has a line of its own; a dotted name among `words` may break."""
    if (found := re.fullmatch(r"(\S+) (\[[^\]]*, [^\]]*\])", text)) is not None:
        return f"{escape(found[1])}<br><small>{escape(found[2])}</small>"
    if not words or len(text) <= 12:
        return escape(text)
    return re.sub(r"(?<=\w)([._=/])(?=\w)", r"\1<wbr>", escape(text))
