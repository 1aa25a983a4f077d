"""What the wheel must carry beside modules."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_data_file_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("adm_bench", "generators", "metrics", "reports"):
        found = [path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        assert ROOT / package / "py.typed" in found
        for path in found:
            name = str(path.relative_to(ROOT / package))
            assert any(fnmatch(name, pattern) for pattern in declared[package]), f"{path} would not be installed"


def test_every_folder_of_modules_is_a_package() -> None:
    for package in ("adm_bench", "generators", "metrics", "reports"):
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), (
                f"{path.parent} has no __init__.py: it would not be installed"
            )


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert {name.split(">=")[0].lower() for name in wanted} <= pinned
