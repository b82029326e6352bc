"""The site: `make docs` builds it into _build/html. Blocks of code are run by .ci/documents.py, not here."""

import sys
from pathlib import Path

import densezoo

sys.path.insert(0, str(Path(__file__).parent))

project = "densezoo"
version = release = densezoo.__version__
author = "the authors of densezoo"
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "api_reference"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # a page may begin at another level than its neighbours

myst_heading_anchors = 3

html_theme = "furo"
html_title = f"densezoo {version}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]

# Docstrings: Google's style, with plain backticks for code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
autodoc_default_options = {"members": True, "exclude-members": "reference_names, replace"}
