"""How Sphinx builds the pages of this folder: `python -m sphinx -W docs OUT` (`pip install 'mbo2o[docs]'`).

The pages are plain Markdown, which is read as it stands elsewhere. Two things are added here while they are
read: the contents of the site, which are the links of the index pages, and, for links to files outside this
folder, copies of these files.
"""

import re
from pathlib import Path

import mbo2o

HERE = Path(__file__).resolve().parent
INDICES = ("index", "methods/index", "results/index")
LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(([^)#\s]+)(?:#[^)\s]*)?\)")

project = "mbo2o"
release = version = mbo2o.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"mbo2o {release}"
html_show_sourcelink = False
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_member_order = "bysource"


def contents(docname, text):
    """The pages of this folder that an index links to, in their order, by names relative to it."""
    here = (HERE / docname).parent
    found = dict.fromkeys(target for _, target in LINK.findall(text) if (here / target).is_file())
    folder = HERE if docname == "index" else here
    inside = [x for x in found if x.endswith(".md") and (here / x).resolve().is_relative_to(folder)]
    return [x.removesuffix(".md") for x in inside]


def read(app, docname, source):
    """Add an index's contents, and turn links to files outside this folder into downloads."""
    text, here = source[0], (HERE / docname).parent
    pages = contents(docname, text) if docname in INDICES else []

    def copied(link):
        title, target = link.groups()
        file = here / target
        if "://" in target or not file.is_file() or file.resolve().is_relative_to(HERE):
            return link[0]
        return f"{{download}}`{title.replace('`', '')} <{target}>`"

    text = LINK.sub(copied, text)
    if pages:
        text += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"
    source[0] = text


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", read)
