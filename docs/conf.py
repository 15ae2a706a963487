"""The site: make docs."""

import ast
import hashlib
import importlib
import inspect
import os
import textwrap
from importlib.metadata import distribution
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

project = "catapult_jax"
author = "The catapult_jax authors"
project_copyright = "The catapult_jax authors, Apache 2.0"
version = release = distribution("catapult_jax").version

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_design",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = "catapult_jax"
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False}
html_copy_source = html_show_sourcelink = False
# Formulas without a network: the files of MathJax that this package has.
html_static_path = ["_static", str(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static"))]
mathjax_path = "mathjax/tex-chtml.js"
html_css_files = ["site.css"]

# Pages with code cells are executed, each in a temporary folder; with the same cells and the same code they come from the cache.
_HERE = Path(__file__).parent
_CODE = [path for name in ("catapult_jax", "experiments", "configs") for path in sorted((_HERE.parent / name).rglob("*.py"))]
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _CODE)).hexdigest()[:12]
nb_execution_mode = "cache"
nb_execution_cache_path = str(_HERE / "_build" / "cells" / _DIGEST)
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Docstrings: one page for each public name.
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Pages of names that differ in case alone need files that differ otherwise, for file systems without case.
autosummary_filename_map = {
    f"catapult_jax.{name}": f"catapult_jax.{name}_class" for name in ("Detector", "Directional", "Watch")
}
# Code cells import configs and experiments of this checkout, and look for data where its Makefile does.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))


def comments_of_fields(cls) -> dict[str, str]:
    """The comments beside the fields of a class, or on the lines above them."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines, comments = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            beside = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2]
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip().lstrip("# "))
            comments[node.target.id] = beside.strip() or " ".join(above)
    return comments


def describe_fields(_app, _what, name, _obj, _options, lines) -> None:
    """Fields of named tuples are described by their comments, not by "Alias for field number"."""
    if lines and lines[0].startswith("Alias for field number"):
        module, cls, field = name.rsplit(".", 2)
        lines[:] = [comments_of_fields(getattr(importlib.import_module(module), cls)).get(field, "").replace("*", r"\*")]


def leave_out_of_the_menu(_app, docname, source) -> None:
    """The pages of details of the claims are reached from the table of claims."""
    if docname.startswith("claims/"):
        source[0] = f"---\norphan: true\n---\n\n{source[0]}"


def setup(app) -> None:
    """Connects the functions above."""
    app.connect("source-read", leave_out_of_the_menu)
    app.connect("autodoc-process-docstring", describe_fields)
