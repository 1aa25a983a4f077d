"""The arrows of DESIGN.md: who may import whom, where imports may be deferred, what start-up loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from adm_bench.cli import COMMANDS

ROOT = Path(__file__).parents[1]
LEAVES = ("generators", "metrics", "reports")
PACKAGES = ("adm_bench", *LEAVES)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_DEFER = ("adm_bench/__init__.py", "adm_bench/cli.py", "adm_bench/registry.py", "adm_bench/commands/")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module of ours that a file imports, and whether the import is deferred into a function."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            ]
        for name in names:
            if name.split(".")[0] in PACKAGES:
                yield name, id(node) in inside


def test_the_tree_is_read() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name, deferred in imports(path):
        assert name in MODULES, f"{path}: imports {name}, which is no module"
        target = name.split(".")[0]
        assert package == "adm_bench" or target == package, f"{path}: a leaf imports {name}"
        assert name not in PACKAGES, f"{path}: imports the package root {name}"
        if deferred:
            allowed = str(path.relative_to(ROOT)).startswith(MAY_DEFER)
            assert allowed, f"{path}: defers the import of {name} into a function"


def test_there_is_no_cycle() -> None:
    graph = {name: {target for target, deferred in imports(path) if not deferred} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", PACKAGES)
def test_roots_of_packages_hold_no_code(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        if path != ROOT / "adm_bench" / "__init__.py":
            assert len(body) == 1, f"{path}: more than a docstring"


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after running `code`."""
    program = f"{code}\nimport sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    run = f"from adm_bench.cli import main; main({arguments!r}, standalone_mode=False)"
    heavy = {"torch", "pandas", "scipy", "numpy", "sklearn", "matplotlib", "PIL", "rich", "jinja2"}
    assert not heavy & loaded_by(run)


def test_public_names_are_lazy_sorted_and_there() -> None:
    assert "torch" not in loaded_by("import adm_bench; assert adm_bench.__all__ == sorted(adm_bench.__all__)")
    loaded_by("import adm_bench; [getattr(adm_bench, name) for name in adm_bench.__all__]")


def test_a_shadowed_leaf_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import adm_bench"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "'metrics'" in done.stderr
