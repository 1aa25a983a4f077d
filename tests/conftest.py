"""Golden values (tests/golden), and a ledger of those that a golden test checked, printed after the tests."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).parent
NOT_TABLES = {"versions", "reference", "environment", "recommended_tolerances"}
OPT_IN = ("gpu", "network")


class Taken(Mapping[str, Any]):
    """A mapping that reports every entry whose value is read."""

    def __init__(self, entries: Mapping[str, Any], report: Callable[[str], None]) -> None:
        self.entries = entries
        self.report = report

    def __getitem__(self, name: str) -> Any:
        value = self.entries[name]
        self.report(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class GoldenValues:
    """One pair of golden files: arrays by name, and tables of entries by name (of a list: by id or place)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken: set[str] = set()
        self.checked: set[str] = set()

    @cached_property
    def arrays(self) -> Mapping[str, np.ndarray]:
        with np.load(TESTS / "golden" / f"{self.name}.npz", allow_pickle=False) as stored:
            return Taken(dict(stored), lambda name: self.taken.add(f"array {name}"))

    @cached_property
    def tables(self) -> dict[str, Mapping[str, Any]]:
        loaded = json.loads((TESTS / "golden" / f"{self.name}.json").read_text())
        tables = {table: entries for table, entries in loaded.items() if table not in NOT_TABLES}
        return {table: self._table(table, entries) for table, entries in tables.items() if not isinstance(entries, str)}

    def _table(self, table: str, entries: dict[str, Any] | list[dict[str, Any]]) -> Mapping[str, Any]:
        if isinstance(entries, list):
            entries = {entry.get("id", str(place)): entry for place, entry in enumerate(entries)}
        return Taken(entries, lambda entry: self.taken.add(f"{table} {entry}"))

    def everything(self) -> list[str]:
        entries = [f"{table} {entry}" for table, entries in self.tables.items() for entry in entries]
        return [f"array {name}" for name in self.arrays] + entries

    def summary(self) -> str:
        arrays = [f"array {name}" in self.checked for name in self.arrays]
        tables = [[f"{table} {entry}" in self.checked for entry in rows] for table, rows in self.tables.items()]
        entries = f"{sum(map(sum, tables))} of {sum(map(len, tables))} entries"
        whole = f"{sum(map(all, tables))} of {len(tables)} table{'s' * (len(tables) > 1)} whole"
        return f"{self.name} {sum(arrays)} of {len(arrays)} arrays and {entries} ({whole})"


def is_golden(test_name: str) -> bool:
    return "golden" in test_name.partition("[")[0]


class Ledger:
    """Counts as checked what a golden test took, alone or through its fixtures, and passed."""

    def __init__(self) -> None:
        self.diffusion, self.metrics = GoldenValues("diffusion"), GoldenValues("metrics")
        self.unchecked: list[str] = []
        self.left_out: list[pytest.Item] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Any:
        """Hand tests/metrics its golden values through the ledger."""
        value = yield
        if fixturedef.argname in ("golden_arrays", "golden_case") and fixturedef.cached_result is not None:
            cases = self.metrics.tables["cases"]
            value = self.metrics.arrays if fixturedef.argname == "golden_arrays" else cases.__getitem__
            fixturedef.cached_result = (value, *fixturedef.cached_result[1:])
        return value

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for values in (self.diffusion, self.metrics):
            if report.when == "call" and report.passed and is_golden(report.location[2]):
                values.checked |= values.taken
            if report.when != "setup":
                values.taken.clear()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.left_out += [item for item in items if is_golden(item.name)]

    def is_full(self, session: pytest.Session) -> bool:
        """Whether every golden test in the folder was to run; those that need a mark's machine may be missing."""
        opted_out = [item for item in self.left_out if any(map(item.get_closest_marker, OPT_IN))]
        present = {(item.path, item.name.partition("[")[0]) for item in [*session.items, *opted_out]}
        written = {
            (path, name)
            for path in TESTS.rglob("test_*.py")
            for name in re.findall(r"^def (test_\w*golden\w*)\(", path.read_text(), re.MULTILINE)
        }
        return len(opted_out) == len(self.left_out) and written <= present

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.diffusion.checked and self.is_full(session):
            values = (self.diffusion, self.metrics)
            self.unchecked = [name for each in values for name in each.everything() if name not in each.checked]
        if self.unchecked and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        ran = [values.summary() for values in (self.diffusion, self.metrics) if values.checked]
        if ran:
            terminalreporter.write_line(f"golden values: {'; '.join(ran)}")
        if self.unchecked:
            terminalreporter.write_line(f"golden values that no test checked: {', '.join(self.unchecked)}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Ledger(), "golden-ledger")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the tests' own for what is kept between runs, and not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("ADM_BENCH_HOME", str(folder))
        patch.delenv("ADM_BENCH_INCEPTION", raising=False)
        yield folder


@pytest.fixture(scope="session")
def diffusion_goldens(pytestconfig: pytest.Config) -> GoldenValues:
    """What guided-diffusion computes: `arrays`, and `tables` of scalars and configurations."""
    ledger: Ledger = pytestconfig.pluginmanager.get_plugin("golden-ledger")
    return ledger.diffusion
