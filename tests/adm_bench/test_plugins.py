"""Plug-ins of other packages: found through entry points, and broken ones named without harm to the rest."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType

import pytest
import torch

from adm_bench import registry
from adm_bench.errors import InputError
from generators.noise import Noise
from metrics.features.digits import DigitsFeatures
from metrics.protocol import EvaluationProtocol


class Grey(Noise):
    """Every image is grey."""

    def sample(self, seeds, labels, evaluated=None):  # type: ignore[no-untyped-def, override]  # noqa: ANN001, ANN201, ARG002
        return torch.full((len(seeds), 3, self.image_size, self.image_size), 128, dtype=torch.uint8)


class OwnFeatures(DigitsFeatures):
    """Digits features under a protocol of their own."""

    name = "own"
    protocol = EvaluationProtocol(name="own", version=7)


@pytest.fixture
def _plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("a_plugin")
    module.Grey, module.OwnFeatures = Grey, OwnFeatures  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_plugin", module)
    points = {
        "adm_bench.generators": [("grey", "a_plugin:Grey"), ("broken", "no_such_module:Thing")],
        "adm_bench.features": [("own", "a_plugin:OwnFeatures")],
    }
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: EntryPoints(EntryPoint(name, value, group) for name, value in points.get(group, [])),
    )
    registry.rows.cache_clear()
    yield
    registry.rows.cache_clear()


@pytest.mark.usefixtures("_plugins")
def test_a_plug_in_is_like_a_built_in(run: Callable[..., object], samples: Path, tmp_path: Path) -> None:
    out, reference = tmp_path / "grey.npz", tmp_path / "ref.npz"
    run("sample", "grey", "--size", 8, "--num", 20, "--out", out, "--device", "cpu")
    run("reference", samples, "--features", "own", "--out", reference, "--device", "cpu")
    arguments = ("evaluate", reference, out, "--features", "own", "--metrics", "sfid,recall")
    assert "protocol own v7" in run(*arguments).output  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_plugins")
def test_a_broken_plug_in_harms_nobody_else(
    run: Callable[..., object], refuse: Callable[..., str], tmp_path: Path
) -> None:
    listed = run("list", "generators", "--json").output  # type: ignore[attr-defined]
    assert "cannot be imported: No module named 'no_such_module'" in listed
    assert "grey" in listed
    assert "cannot be imported" in refuse("sample", "broken", "--out", tmp_path / "out.npz")


def test_a_name_taken_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = EntryPoints([EntryPoint("digits", "a_plugin:Grey", "adm_bench.datasets")])
    monkeypatch.setattr(registry, "entry_points", lambda group: taken)  # noqa: ARG005  the real one's signature
    registry.rows.cache_clear()
    with pytest.raises(InputError, match="datasets 'digits' is registered twice"):
        registry.rows("datasets")
