"""The code hash: what it follows, and what it does not notice."""

import ast
from pathlib import Path

import pytest

from forgetmenot.code_hash import CodeHasher, _dump, code_hash


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "forgetmenot/__init__.py": "",
        "forgetmenot/stage.py": "from forgetmenot import files, tracking\n",
        "forgetmenot/files.py": "def f():\n    return 1\n",
        "forgetmenot/tracking/__init__.py": "from forgetmenot import unrelated\n",
        "forgetmenot/unrelated.py": "X = 1\n",
        "forgetmenot/mixers/__init__.py": "",
        "forgetmenot/mixers/base.py": "BASE = 1\n",
        "forgetmenot/mixers/gdn.py": (
            '"""GDN."""\nfrom .base import BASE\n\n\n'
            "def mix():\n    # why\n    import forgetmenot_kernels.scan.api\n"
        ),
        "forgetmenot/mixers/lte.py": "from . import base\n",
        "forgetmenot/report/__init__.py": "",
        "forgetmenot/report/build.py": "from forgetmenot.report import tables\n",
        "forgetmenot/report/tables.py": "T = 1\n",
        "forgetmenot/report/templates/page.html": "<html>",
        "kernels/forgetmenot_kernels/__init__.py": "",
        "kernels/forgetmenot_kernels/scan/__init__.py": "",
        "kernels/forgetmenot_kernels/scan/api.py": "import torch\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def hasher(tree: Path) -> CodeHasher:
    return CodeHasher((tree, tree / "kernels"))


def test_closure_follows_relative_nested_and_parent_imports_but_not_tracking(tree: Path) -> None:
    assert hasher(tree).closure("forgetmenot.mixers.gdn", "forgetmenot.stage") == {
        "forgetmenot",
        "forgetmenot.files",
        "forgetmenot.mixers",
        "forgetmenot.mixers.base",
        "forgetmenot.mixers.gdn",
        "forgetmenot.stage",
        "forgetmenot_kernels",
        "forgetmenot_kernels.scan",
        "forgetmenot_kernels.scan.api",
    }


def test_from_dot_import_finds_the_sibling_module(tree: Path) -> None:
    assert "forgetmenot.mixers.base" in hasher(tree).closure("forgetmenot.mixers.lte")


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("forgetmenot/mixers/base.py", "# a comment\nBASE = 1\n", False),
        ("forgetmenot/mixers/base.py", '"""A docstring."""\n\nBASE = (1)\n', False),
        ("forgetmenot/mixers/base.py", "BASE = 2\n", True),
        ("forgetmenot/mixers/lte.py", "LTE = 2\n", False),
        ("forgetmenot/mixers/__init__.py", "NAME = 1\n", True),
        ("kernels/forgetmenot_kernels/scan/api.py", "import numpy\n", True),
        ("forgetmenot/mixers/table.json", "{}", True),
        ("forgetmenot/mixers/.cache/table.json", "{}", False),
        ("forgetmenot/mixers/__pycache__/gdn.pyc", "", False),
    ],
)
def test_only_statements_within_the_closure_change_the_hash(
    tree: Path, file: str, text: str, changes: bool
) -> None:
    before = hasher(tree).hash("forgetmenot.mixers.gdn")
    (tree / file).parent.mkdir(exist_ok=True)
    (tree / file).write_text(text)
    assert (hasher(tree).hash("forgetmenot.mixers.gdn") != before) is changes


def test_docstrings_of_functions_and_classes_do_not_count(tree: Path) -> None:
    path = tree / "forgetmenot/files.py"
    path.write_text("class A:\n    def f(self):\n        return 1\n")
    before = hasher(tree).hash("forgetmenot.files")
    path.write_text('class A:\n    """A."""\n\n    def f(self):\n        "F."\n        return 1\n')
    assert hasher(tree).hash("forgetmenot.files") == before


def test_a_template_in_a_subfolder_counts(tree: Path) -> None:
    before = hasher(tree).hash("forgetmenot.report.build")
    (tree / "forgetmenot/report/templates/page.html").write_text("<p>")
    assert hasher(tree).hash("forgetmenot.report.build") != before


def test_tracking_does_not_count(tree: Path) -> None:
    before = hasher(tree).hash("forgetmenot.stage")
    (tree / "forgetmenot/tracking/__init__.py").write_text("X = 1\n")
    assert hasher(tree).hash("forgetmenot.stage") == before


def test_unknown_root_is_refused(tree: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"forgetmenot\.nothing"):
        hasher(tree).hash("forgetmenot.nothing")


def test_the_checkout_itself_is_hashed_and_narrow() -> None:
    assert len(code_hash("forgetmenot.cli.train")) == 64
    lte = CodeHasher().closure("forgetmenot.mixers.lte")
    gdn = CodeHasher().closure("forgetmenot.mixers.gdn")
    assert "forgetmenot_kernels.lte_attention" in lte
    assert "forgetmenot_kernels.lte_attention" not in gdn


@pytest.mark.parametrize("stage", ["data", "train", "evaluate", "report", "tracking"])
def test_no_stage_reaches_a_plugin_or_another_stage_statically(stage: str) -> None:
    # Else a change of one mixer, builder or evaluator would rerun everything.
    closure = CodeHasher().closure(f"forgetmenot.cli.{stage}")
    plugins = {
        name
        for kind in ("mixers", "data", "evaluate", "prosg")
        for name in closure
        if name.startswith(f"forgetmenot.{kind}.")
    }
    shared = {"forgetmenot.mixers.base"}
    assert plugins <= shared


def test_what_python_versions_add_to_a_tree_changes_nothing() -> None:
    source = "def f(a, b=None):\n    return f'{a:>{b}}'\n"
    tree = ast.parse(source)
    newer = ast.parse(source)
    function = newer.body[0]
    function._fields = (
        *(name for name in function._fields if name != "type_params"),
        "type_params",
    )
    function.type_params = []  # type: ignore[attr-defined]
    assert _dump(newer) == _dump(tree)
    text = next(node for node in ast.walk(newer) if isinstance(node, ast.JoinedStr))
    text.values.append(ast.Constant(""))
    assert _dump(newer) == _dump(tree)
    assert "Constant(None)" in _dump(tree)
    assert _dump(ast.parse("x = None")) != _dump(ast.parse("x = 0"))
    assert _dump(ast.parse("x = ''")) != _dump(ast.parse("x = b''"))
