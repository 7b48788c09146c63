"""What all figures share: colours, titles, and the look of axes. Nothing here touches pyplot."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# the palette of Okabe and Ito, which colour-blind readers can tell apart; a colour means the same in all
# figures of a run
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY = "#222222", "#767676"


NARROW = 4.4
"""The width in inches of a figure for a narrow page, such as a phone's."""


def add_title(figure: Figure, title: str, subtitle: str) -> None:
    """Write a title and grey text below it, both small enough to fit; the text may take two lines."""
    width, height = figure.get_size_inches()
    size = min(18, 110 * width / max(1, len(title)))
    figure.text(0.03, 1 - 0.4 / height, title, fontsize=size, weight="bold", color=INK)
    room = 0.94 * 72 * width / 0.53  # a letter of the font is 0.53 as wide as it is high, on average
    size = max(9, min(12, room / max(1, len(subtitle))))
    lines = textwrap.wrap(subtitle, max(20, int(room / size)))[:2]
    figure.text(0.03, 1 - 0.53 / height, "\n".join(lines), fontsize=size, color=GREY, va="top")


def dress(axes: Axes, left: bool = True, labels: float = 12) -> None:
    """Give axes a plain frame and a grid; `left` draws the axis on the left and its labels, of this size."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_visible(left)
    axes.tick_params(labelsize=labels, left=left, which="both", labelleft=left)
    axes.grid(axis="y", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)


def thousands(x: float, _: int) -> str:
    """A tick's label: 2000 is "2k"."""
    return f"{x / 1000:g}k" if abs(x) >= 1000 else f"{x:g}"
