"""The public names: few, the same everywhere, and no dearer than what is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hybridfast


@pytest.mark.parametrize("name", hybridfast.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(hybridfast, name) is not None
    assert name in dir(hybridfast)


def test_what_type_checkers_see_is_what_is_imported() -> None:
    tree = ast.parse(Path(hybridfast.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == {name: f"hybridfast.{room}" for name, room in hybridfast._ROOMS.items()}
    assert {*seen, "build_info", "__version__"} == set(hybridfast.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hybridfast' has no attribute 'info_nse'"):
        _ = hybridfast.info_nse


def test_the_package_imports_nothing_large() -> None:
    """Not torch, which takes a second, nor what stands on it."""
    code = (
        "import sys, hybridfast; hybridfast.build_info()\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'transformers') if name in sys.modules])"
    )
    flag = "-P" if sys.version_info >= (3, 11) else "-I"
    done = subprocess.run([sys.executable, flag, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
