"""The site: what Sphinx needs to know. Everything it reads is here or made from the code; nothing is fetched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import docstrings  # noqa: E402
import gallery  # noqa: E402
import reference  # noqa: E402

import contracting  # noqa: E402

os.environ.pop("MPLBACKEND", None)  # or notebooks would draw for nobody
# Notebooks run without the settings of whoever builds the site, and their kernels report errors only.
profile = HERE / "_build" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 'ERROR'\n")
os.environ["IPYTHONDIR"] = str(profile.parent)
reference.write(HERE)
gallery.write(HERE / "_demos")

project = "Contracting Equilibria"
author = "The Contracting Equilibria authors"
version = release = contracting.__version__
copyright = "2026, the Contracting Equilibria authors"
html_title = f"{project} {release}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_demos", "**.ipynb", "gallery/*.py", "gallery/searchindex.db", "sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # the scraper of the gallery is a function, which Sphinx cannot remember
nitpicky = True
smartquotes = False  # an apostrophe is a derivative here
toc_object_entries = False  # every object has a headline

# Docstrings: what is inherited is documented where it comes from.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = True
autodoc_preserve_defaults = True
autoclass_content = "class"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds for a cell: far more than it takes on a machine at rest
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_merge_streams = True

sphinx_gallery_conf = {
    "examples_dirs": "_demos",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "image_scrapers": ("gallery.scraper",),
    "reset_modules": (),
    "parallel": 2,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "thumbnail_size": (600, 400),
    "within_subsection_order": "ExampleTitleSortKey",
}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: object) -> None:
    """Called by Sphinx."""
    docstrings.setup(app)
