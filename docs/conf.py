"""Sphinx configuration: `make docs` builds the site into _build/html. `.ci/documents.py` runs the code blocks."""

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
suppress_warnings = ["myst.header"]  # pages may start at different heading levels

myst_heading_anchors = 3

html_theme = "furo"
html_title = f"densezoo {version}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]

# Docstrings use Google style, with single backticks for code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # fields are listed under "Attributes", not "Variables"
napoleon_use_rtype = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
autodoc_default_options = {"members": True, "exclude-members": "reference_names, replace"}
