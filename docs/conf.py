"""Sphinx configuration: MyST pages, numpydoc reference, examples that the build runs."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import bnnumba

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "bnnumba"
author = "bnnumba developers"
copyright = "2026, bnnumba developers"
release = version = bnnumba.__version__

extensions = [
    "c_header",
    "conventions_table",
    "mathml",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
# The reference of the adapters is made without PyTorch and Keras, too.
autodoc_mock_imports = [name for name in ("keras", "torch") if not find_spec(name)]
os.environ.setdefault("KERAS_BACKEND", "torch")
autodoc_typehints = "none"  # the docstrings say it in words
numpydoc_show_class_members = False  # they follow, each with its whole documentation

doctest_global_setup = "from importlib.util import find_spec"
doctest_test_doctest_blocks = ""  # docstrings are run by the tests
trim_doctest_flags = True

# Copy only what one types.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = f"bnnumba {release}"
html_show_sourcelink = False
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_sidebars = {  # pages without siblings
    page: []
    for page in ["benchmarks", "changes", "contributing", "examples", "install", "quickstart"]
}
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
}


def list_recorded_benchmarks(app, docname, source):
    """Add what ``make bench`` recorded to its page: an empty toctree would be a warning."""
    if docname == "benchmarks" and any(app.srcdir.glob("benchmarks/*.md")):
        source[0] += "\n```{toctree}\n:glob:\n\nbenchmarks/*\n```\n"


def leave_out_attributes(app, what, name, member, skips, options):
    """Leave out of the members of a class what its section on attributes has."""
    return skips or isinstance(member, property) or type(member).__name__ == "_tuplegetter"


def setup(app):
    app.connect("source-read", list_recorded_benchmarks)
    app.connect("autodoc-skip-member", leave_out_attributes)
