import subprocess
import sys

import pytest

from metrics.features import torchvision_import
from metrics.features.torchvision_import import DESCRIBED, MISSING, import_torchvision


def in_fresh_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torchvision_and_what_needs_it_import() -> None:
    in_fresh_process("""
from metrics.features.torchvision_import import import_torchvision
assert import_torchvision() is import_torchvision()
import torch_fidelity, torchvision.transforms
""")


def test_operators_are_declared_only_where_the_library_did_not_load() -> None:
    in_fresh_process(f"""
import torch
try:
    import torchvision
    loads = True
except RuntimeError as error:
    assert {MISSING!r} in str(error)
    loads = False
declared, define = [], torch.library.define
torch.library.define = lambda name, *rest: (declared.append(name), define(name, *rest))
from metrics.features.torchvision_import import import_torchvision
torchvision = import_torchvision()
assert torchvision.extension._has_ops() == loads
assert declared == ([] if loads else ["torchvision::" + name for name in {DESCRIBED!r}])
if not loads:
    try:
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except NotImplementedError:
        pass
    else:
        raise AssertionError("an operator that is only declared must not give a result")
""")


def test_another_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(f"{name} is broken otherwise")

    monkeypatch.setattr(torchvision_import.importlib, "import_module", fail)
    monkeypatch.setattr(torchvision_import.torch.library, "define", lambda *_: pytest.fail("nothing is to be declared"))
    with pytest.raises(RuntimeError, match="torchvision is broken otherwise"):
        import_torchvision()
