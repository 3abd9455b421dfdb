"""How Sphinx makes a site of this folder (`make docs`); no page of it loads from elsewhere."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
GENERATED = HERE / "generated"
WORK = Path(os.environ.get("SKYVEC_DOCS_WORK", HERE / "_build/work")).resolve()
"""Where notebooks run; a mock survey that is there already is used."""
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "error")  # clusters of notebooks come and go


def _into_work(_: object, __: str, when: str) -> None:
    """Draw a notebook's last value where it ran: thumbnails are read from there."""
    os.chdir(WORK if when == "before" else HERE)
    # What libraries tell one another of their next versions is not for readers of a page.
    warnings.formatwarning = lambda *_, **__: ""


project = "skyvec"
author = "The skyvec developers"
copyright = author  # noqa: A001
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "notebooks", "generated/notebooks/*.ipynb", "generated/**/*.py"]
suppress_warnings = ["config.cache"]  # a hook of the gallery cannot be pickled

html_theme = "furo"
html_title = "skyvec"
html_static_path = ["_static"]
html_css_files = ["skyvec.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": str(WORK),
    "gallery_dirs": "generated/notebooks",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_", "__repr__"),
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "reset_modules": (_into_work,),
    "reset_modules_order": "both",
}


def _stage_notebooks() -> None:
    """Notebooks run where they lie, so they are copied to where their files may lie, too."""
    WORK.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "notebooks").iterdir():
        shutil.copy2(source, WORK)


def _write_cli_page() -> None:
    """The page of the command line, in a process of its own, which leaves nothing behind here."""
    tool = HERE.parent / "tools/write_cli_page.py"
    subprocess.run([sys.executable, tool, GENERATED / "cli.md"], check=True)  # noqa: S603


_stage_notebooks()
_write_cli_page()
