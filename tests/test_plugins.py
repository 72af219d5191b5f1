"""Plugins: listed, loaded and their options read without importing them."""

import subprocess
import sys
from pathlib import Path

import pytest

from forgetmenot import plugins
from forgetmenot.errors import UserError

WITH_OPTIONS = '''
from __future__ import annotations

import a_module_that_does_not_exist
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Options:
    """Options."""

    width: int  # width
    kind: Literal["a", "b"] = "a"
    taps: list[int] = field(default_factory=lambda: [3])

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: found {self.width}, allowed: 1 or more")
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "mixers"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("X = 1\n")
    (folder / "wide.py").write_text(WITH_OPTIONS)
    (folder / "narrow.py").write_text("from somewhere import Options\n")
    return tmp_path


def test_names_are_the_modules_with_options(root: Path) -> None:
    assert plugins.names("mixers", root) == ["narrow", "wide"]


def test_options_are_read_without_importing_the_module(root: Path) -> None:
    options = plugins.options_class("mixers", "wide", root=root)(width=2)
    assert (options.width, options.kind, options.taps) == (2, "a", [3])
    with pytest.raises(ValueError, match="width: found 0"):
        plugins.options_class("mixers", "wide", root=root)(width=0)


@pytest.mark.parametrize("name", ["helper", "nothing", "../mixers/wide", ""])
def test_unknown_plugin_lists_the_allowed_names(root: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"models/a\.yaml: found '.*'; allowed: narrow, wide"):
        plugins.options_class("mixers", name, where="models/a.yaml", root=root)


def test_missing_class_names_the_file(root: Path) -> None:
    with pytest.raises(UserError, match=r"wide\.py: found no class StreamOptions"):
        plugins.options_class("mixers", "wide", "StreamOptions", root=root)


def test_load_imports_a_plugin_and_refuses_others() -> None:
    assert hasattr(plugins.load("data", "mqar"), "build")
    with pytest.raises(UserError, match=r"data plugin: found 'mqarr'; allowed: .*mqar"):
        plugins.load("data", "mqarr")


@pytest.mark.parametrize("kind", ["mixers", "data", "evaluate"])
def test_options_of_every_plugin_can_be_read(kind: str) -> None:
    found = plugins.names(kind)
    assert found
    for name in found:
        assert plugins.options_class(kind, name).__name__ == "Options"


def test_reading_options_imports_no_torch() -> None:
    code = (
        "import sys; from forgetmenot import plugins\n"
        "[plugins.options_class('mixers', n) for n in plugins.names('mixers')]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
