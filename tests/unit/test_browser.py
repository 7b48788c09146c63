"""The pages in a real browser: nothing is wider than the screen, nothing is asked of a network.

Chromium's own headless mode shows them, at the widths of a phone and of a screen, in light and in dark.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fakeruns import four_runs
from PIL import Image

from mbo2o.report.comparison import write_comparison
from mbo2o.report.page import write_report

CHROMIUM = next((x for x in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if x), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
PROBE = """<script>
addEventListener("load", () => {
  const shown = [...document.querySelectorAll(".picture svg")].filter(x => x.getBoundingClientRect().width);
  const box = document.documentElement, found = {
    width: innerWidth, scroll: Math.max(box.scrollWidth, document.body.scrollWidth),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    asked: performance.getEntriesByType("resource").map(x => x.name),
    pictures: shown.map(x => [x.getBoundingClientRect().left, x.getBoundingClientRect().right]),
    letters: Math.min(...shown.flatMap(x => [...x.querySelectorAll("text")])
      .map(x => x.getBoundingClientRect().height).filter(x => x)),
    titles: [...document.querySelectorAll("h1,h2,h3")].map(x => x.scrollWidth - x.clientWidth),
    ink: getComputedStyle(document.querySelector(".picture text")).fill,
    back: getComputedStyle(document.body).backgroundColor,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
"""What a test adds to its copy of a page, to learn how it is laid out."""
FRAME = """<!doctype html><html style="color-scheme:light dark"><title>none</title>
<script>addEventListener("message", e => { document.title = "FOUND" + e.data; });</script>
<body style="margin:0"><iframe src="page.html" style="width:%dpx;height:%dpx;border:0"></iframe></body>"""
"""A page in a frame of its own width: a window of headless chromium is at least 500 pixels wide."""


def chromium(*options, url):
    """What headless chromium prints; hosts cannot be found, so that a request would fail."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of one run and of four."""
    folder = tmp_path_factory.mktemp("a folder whose name is much longer than a phone is wide") / "runs"
    runs = four_runs(folder)
    return {"one": write_report(runs[0]), "four": write_comparison([folder])}


@pytest.mark.parametrize(
    ("width", "mode"), [(360, "light"), (400, "light"), (400, "dark"), (1400, "dark"), (1600, "light")]
)
@pytest.mark.parametrize("which", ["one", "four"])
def test_a_page_fits_its_width_and_asks_for_nothing(which, width, mode, pages, tmp_path):
    text = pages[which].read_text()
    (tmp_path / "page.html").write_text(text.replace("</head>", f"{PROBE}</head>"))
    (tmp_path / "frame.html").write_text(FRAME % (width, 900))
    scheme = f"--blink-settings=preferredColorScheme={int(mode == 'light')}"
    url = (tmp_path / "frame.html").as_uri()
    dom = chromium(scheme, f"--window-size={max(width, 500)},900", "--dump-dom", url=url)
    found = json.loads(re.search(r"<title>FOUND(.*?)</title>", dom)[1].replace("&amp;", "&"))
    assert found["width"] == width
    assert found["scroll"] <= width, "the page does not scroll sideways"
    assert found["dark"] == (mode == "dark")
    assert found["asked"] == []
    assert found["pictures"]
    assert all(left >= 0 and right <= width for left, right in found["pictures"])
    assert found["letters"] >= 10, "pixels: small letters can still be read"
    assert not any(found["titles"]), "no title is cut"
    assert found["ink"] == {"light": "rgb(34, 34, 34)", "dark": "rgb(221, 221, 221)"}[mode]


@pytest.mark.parametrize("which", ["one", "four"])
def test_a_dark_page_has_a_dark_screen_with_light_letters(which, pages, tmp_path):
    shown = {}
    for mode in (0, 1):
        path = tmp_path / f"{mode}.png"
        scheme = f"--blink-settings=preferredColorScheme={mode}"
        chromium(scheme, "--window-size=700,2400", f"--screenshot={path}", url=pages[which].as_uri())
        shown[mode] = np.asarray(Image.open(path).convert("L"), float)
    assert np.median(shown[0]) < 40 < 200 < np.median(shown[1])
    assert (shown[0] > 180).mean() > 0.002, "letters and curves are light"
    white = (shown[0] > 250).mean()
    assert white < 0.001, "no picture has a white ground in the dark"


def test_the_pictures_beside_a_page_open_alone(pages, tmp_path):
    for svg in Path(pages["four"]).parent.glob("*.svg"):
        chromium("--window-size=900,700", f"--screenshot={tmp_path / 'x.png'}", url=svg.as_uri())
        shown = np.asarray(Image.open(tmp_path / "x.png").convert("L"), float)
        assert np.median(shown) == 255
        assert shown.min() < 120
