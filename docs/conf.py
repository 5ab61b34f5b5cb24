"""The site of the documentation: `make docs` builds it into build/site with Sphinx."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from lae_jax import __version__  # noqa: E402

project = "lae_jax"
html_title = f"lae_jax {__version__}"
html_theme = "furo"
html_static_path = ["site"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
# A summary in the list of a search is fetched, which a browser refuses to pages that are opened as files.
html_show_search_summary = html_copy_source = html_show_copyright = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Anchors are those of GitHub, so that each link works there too.
myst_heading_anchors = 4

# Indented code is commands for the most part.
highlight_language = "text"
# `backticks` are code in docstrings too.
default_role = "code"
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"

# The model card belongs to the package. On GitHub, links lead to it there; in the site, to its page.
CARD = "../lae_jax/runtime/model_file/faces_lite0.md"


def setup(app):
    def to_its_page(app, name, source):
        if name != "faces_lite0":
            source[0] = source[0].replace(f"({CARD})", "(faces_lite0.md)")

    app.connect("source-read", to_its_page)
