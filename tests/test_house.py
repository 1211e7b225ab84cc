"""What the design says of the house, read off the files."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# What each package may import, besides itself; scripts import every package, and no script imports another.
FLOORS = {"model": set(), "text": set(), "catalogue": {"text"}, "run": {"catalogue", "text", "model"}}
SCRIPTS = tuple(path.stem for path in ROOT.glob("*.py"))
OURS = [path for folder in (".", *FLOORS, "examples") for path in sorted((ROOT / folder).glob("*.py"))]


def imported(path: Path) -> set[str]:
    """The first names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FLOORS)
def test_imports_run_downwards_only(package):
    for path in (ROOT / package).glob("*.py"):
        ours = {path.name for path in ROOT.iterdir() if path.is_dir()} | {*FLOORS, *SCRIPTS, "conftest", "kinds"}
        forbidden = ours - {package} - FLOORS[package]
        assert not imported(path) & forbidden, path


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_never_import_scripts(name):
    assert not imported(ROOT / f"{name}.py") & set(SCRIPTS)


def test_what_every_process_must_call_says_so_in_its_first_word():
    """A gather that one process leaves out keeps the others waiting for half an hour."""
    collective = {"gather", "from_main", "collect", "all_whole", "create_folder", "all_gather_object", "all_reduce"}
    for path in (ROOT / "run").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not nested(path, node):
                calls = [n.func for n in ast.walk(node) if is_call(n) and ast.unparse(n.func) != "gc.collect"]
                calls = {getattr(function, "attr", getattr(function, "id", "")) for function in calls}
                if calls & collective:
                    assert (ast.get_docstring(node) or "").startswith("Collective"), (path.name, node.name)


def is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


def nested(path: Path, function: ast.FunctionDef) -> bool:
    """Whether it stands inside another function."""
    return function.col_offset > 4


def test_no_pickle_is_opened_and_no_foreign_code_is_run():
    for path in OURS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        pickles = {"pickle", "dill", "joblib", "shelve", "marshal"}
        assert not imported(path) & pickles or path.name == "old_weights.py", path  # there for an exception's name
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr != "load" or path.name == "old_weights.py", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":  # its reader builds tensors alone
                assert "weights_only=True" in ast.unparse(node), path
            if isinstance(node, ast.Name):
                assert node.id not in ("eval", "exec"), path


def test_data_preparation_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, data_prep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
