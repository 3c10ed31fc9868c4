"""How the site is built: ``make docs``, without a network, and with every warning an error."""

import os
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "extensions"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # examples run beside each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LOWLAND_CACHE"] = tempfile.mkdtemp()  # nothing of the user's is read or written

from lowland import __version__  # noqa: E402

project = "Lowland"
author = "The Lowland developers"
copyright = "The Lowland developers, MIT licence"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
    "complete",
    "pictures",
]
exclude_patterns = ["_build"]
highlight_language = "text"

# Markdown
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# The reference: what docstrings say, in the order of the code
autodoc_default_options = {"special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

# The gallery
sphinx_gallery_conf = {
    "parallel": os.cpu_count() or 1,
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "order.InOrder",
    "remove_config_comments": True,
    "write_computation_times": False,
    "abort_on_example_error": True,
}

html_theme = "furo"
html_title = f"Lowland {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ee", "color-brand-content": "#7cc4ee"},
}
copybutton_exclude = ".linenos, .gp, .go"


def named_at_the_top(app, env, node, shown):
    """The place of what ``lowland`` has from ``lowland.sam``, on whose page it is."""
    package, _, name = node.get("reftarget", "").rpartition(".")
    if package != "lowland":
        return None
    place = f"lowland.sam.{name}"
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], place, node, shown
    )


def setup(app):
    """Resolves names of the package itself."""
    app.connect("missing-reference", named_at_the_top)
