"""What all figures share: colours, titles, and the look of axes. Nothing here touches pyplot."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# the palette of Okabe and Ito, which colour-blind readers can tell apart; a colour means the same in all
# figures of a run
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY = "#222222", "#767676"


def add_title(figure: Figure, title: str, subtitle: str) -> None:
    """Write a title, small enough to fit, and a grey line below it."""
    width, height = figure.get_size_inches()
    size = min(18, 110 * width / max(1, len(title)))
    figure.text(0.03, 1 - 0.4 / height, title, fontsize=size, weight="bold", color=INK)
    figure.text(0.03, 1 - 0.68 / height, subtitle, fontsize=12, color=GREY)


def dress(axes: Axes, left: bool = True) -> None:
    """Give axes a plain frame and a grid; `left` draws the axis on the left and its labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["left"].set_visible(left)
    axes.tick_params(labelsize=12, left=left, which="both", labelleft=left)
    axes.grid(axis="y", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)


def thousands(x: float, _: int) -> str:
    """A tick's label: 2000 is "2k"."""
    return f"{x / 1000:g}k" if abs(x) >= 1000 else f"{x:g}"
