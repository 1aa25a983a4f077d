"""Where a number comes from: commit, versions, machine and time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("adm-bench", "torch", "numpy", "scipy", "scikit-learn")
ROOT = Path(__file__).resolve().parents[1]


@cache
def versions() -> dict[str, str]:
    """Python's and the packages' versions."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def commit() -> tuple[str | None, bool | None]:
    """The checkout's commit and whether files differ from it; (None, None) outside a checkout."""
    if not (ROOT / ".git").exists():
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def provenance() -> dict[str, object]:
    """What every record states about where it was made."""
    revision, dirty = commit()
    return {
        "commit": revision,
        "dirty": dirty,
        "versions": versions(),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
