"""The rules of the house that no linter knows."""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gflow

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("gflow/**/*.py"))
PACKAGES = [path for path in FILES if path.name == "__init__.py"]
# Public fronts may have more parameters, most of them by keyword.
FRONTS = {"solve_flow", "descend", "chatterjee", "hessian_spectrum", "ShallowNet"}


TREES = {path: ast.parse(path.read_text()) for path in FILES}


def nodes(kind: type) -> Iterator[tuple[Path, Any]]:
    for path, tree in TREES.items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, kind))


def test_files_and_functions_are_short():
    for path in FILES:
        assert path.read_text().count("\n") <= 400, path
    for path, node in nodes(ast.FunctionDef):
        documented = (ast.get_docstring(node, clean=False) or "").count("\n")
        assert node.end_lineno - node.lineno - documented < 60, (path, node.name)


def test_functions_have_few_parameters():
    fronts = [node.args for _, node in nodes(ast.FunctionDef) if node.name in FRONTS]
    for _, node in nodes(ast.ClassDef):
        if node.name in FRONTS:
            fronts += [made.args for made in node.body if isinstance(made, ast.FunctionDef)]
    for path, node in nodes(ast.FunctionDef):
        given = node.args
        count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
        assert count <= 8 or given in fronts, (path, node.name)


def test_no_two_classes_have_one_name():
    names = Counter(node.name.lstrip("_") for _, node in nodes(ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_packages_say_what_is_public(path):
    name = ".".join(path.parent.relative_to(ROOT).parts)
    module = importlib.import_module(name)
    imported = re.findall(r"^(?:from|import) ", path.read_text(), flags=re.MULTILINE)
    assert not imported or set(module.__all__) <= set(dir(module)) | {"plots"}


def test_contributing_names_what_is_there():
    """Every file and function in the table of where things are."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("| question |") : text.index("## Words")]
    source = {path: path.read_text() for path in FILES}
    for name in re.findall(r"`([a-z0-9_/]+\.py)`", table):
        # Of files in one row, only the first has its folder.
        assert any(str(path).endswith(f"/{name}") for path in source), name
    words = re.findall(r"`((?:\w+\.)?\w+)`", table)
    for name in (word.split(".")[-1] for word in words if not word.endswith(".py")):
        pattern = rf"(def|class) {name}\b|^{name} ="
        assert any(re.search(pattern, text, re.MULTILINE) for text in source.values()), name


def test_the_typed_script_uses_every_public_name():
    script = (ROOT / "tests" / "typed_script.py").read_text()
    used = set(re.findall(r"\bgflow\.(\w+)", script))
    assert used >= set(gflow.__all__)
