"""How Sphinx makes the book: from committed outputs, without running anything, and without a request to anybody.

What it imports comes with `python -m pip install -e '.[docs]'`.
"""

import os
import re
from functools import cache

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish
from sphinx.util import logging

import prefmoe

project = "PrefMoE in miniature"
author = copyright = "The contributors to the PrefMoE companion"
version = release = prefmoe.__version__
html_title = project

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py", "docs/examples/**", "**/.ipynb_checkpoints"]
nitpicky = False
language = "en"

# Notebooks are shown as they were committed.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["mystnb.unknown_mime_type"]

# Docstrings say `name` for code, and follow Google's form.
default_role = "code"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False

# Formulas become MathML, which browsers draw themselves: no script, no fonts.
html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_static_path, html_css_files, html_js_files = ["_static"], ["book.css"], ["book.js"]
html_copy_source = True
html_show_sourcelink = False
html_last_updated_fmt = None
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "article_header_start": ["toggle-primary-sidebar.html"],
    "navbar_persistent": [],  # the search field stands in the sidebar
}

# Buttons open a notebook elsewhere, from the repository that the book is built for; without one there are none.
REPOSITORY = os.environ.get("PREFMOE_REPOSITORY", "").rstrip("/")
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": os.environ.get("PREFMOE_BRANCH", "main"),
        "repository_provider": "github",
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }

COLAB = """</h1>
<div class="admonition note" id="on-colab"><p class="admonition-title">On Colab, first</p>
<p>Colab has nothing of this repository. Run this in a new cell at the top, restart the session, and go on below it:</p>
<pre>!git clone --depth 1 --branch {branch} {repository} prefmoe &amp;&amp; pip install -e ./prefmoe</pre></div>"""


def as_tex_reads(formula: str) -> str:
    """A formula for docutils, which takes all digits after a command for its first argument, as TeX does not, and sets
    no space behind a logarithm: ``\\tfrac12 x`` becomes ``\\tfrac{1}{2} x``."""
    formula = re.sub(r"(\\[dt]?(?:frac|binom))\s*(\d)\s*(\d)", r"\1{\2}{\3}", formula)
    formula = re.sub(r"([_^]|\\sqrt)\s*(\d)(?=\d)", r"\1{\2}", formula)
    return re.sub(r"\\log(?=\s+[A-Za-z]|\s*\\(?!left|[bB]ig|[,;:!]))", r"\\log\\,", formula)


def _formula(node: nodes.Element, *, block: bool) -> str:
    try:
        return tex2mathml(as_tex_reads(node.astext()), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s: %s", error, node.astext(), location=node)
        return ""


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(_formula(node, block=False))
    raise nodes.SkipNode


def _display(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_formula(node, block=True)}</div>')
    raise nodes.SkipNode


def _first_on_colab(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Says below the title of a notebook that can be opened on Colab what comes first there."""
    if REPOSITORY and doctree and str(app.env.doc2path(page)).endswith(".ipynb"):
        told = COLAB.format(branch=html_theme_options["repository_branch"], repository=REPOSITORY)
        context["body"] = context["body"].replace("</h1>", told, 1)


def setup(app: Sphinx) -> None:
    SearchEnglish.stem = cache(SearchEnglish.stem)  # of words that most pages say
    app.add_lexer("csv", TextLexer)
    app.connect("html-page-context", _first_on_colab)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
