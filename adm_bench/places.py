"""What a place on the disk is, by the file that marks it, so that nothing is written into another's folder."""

from itertools import islice
from pathlib import Path

from adm_bench.files import is_foreign

RUN_FILE = "run.json"
SUITE_FILE = "suite.json"
PLAN_FILE = "plan.json"
MANIFEST_FILE = "manifest.json"
MARKS = {
    RUN_FILE: "a training run",
    SUITE_FILE: "the folder of a suite's run",
    PLAN_FILE: "the parts of samples or of a reference that is being made",
    MANIFEST_FILE: "a checkpoint of a training run",
}
NAMES_SHOWN = 3


def what_is(path: Path) -> str | None:
    """What lies at a path, in a few words; None where there is nothing, or only what an interrupted start leaves."""
    if not path.is_dir():
        if not path.exists():
            return None
        return "a file of samples or a reference" if path.suffix == ".npz" else "a file"
    for name, what in MARKS.items():
        if (path / name).exists():
            return what
    found = sorted(islice((item.name for item in path.iterdir() if is_foreign(item)), NAMES_SHOWN))
    return f"a folder with other files in it ({', '.join(found)})" if found else None
