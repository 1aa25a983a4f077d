"""The suite file: which data, networks and generators one command is to compare."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adm_bench import registry
from adm_bench.errors import InputError, bad_input
from adm_bench.evaluation import DEFAULT_METRICS
from generators.adm.presets import preset
from generators.configuration import from_mapping, to_mapping, unknown_name, with_changes
from generators.unet.precision import Precision

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """One network to train: a preset and what differs from it."""

    preset: str
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted fields and their values, such as `"training.steps" = 100`."""
    checkpoint_every: int = 500
    precision: Precision = "fp32"
    """Arithmetic of the network while it is trained."""

    def __post_init__(self) -> None:
        """Refuse an interval that never comes."""
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every is {self.checkpoint_every}; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """One row of the report: a generator and how it is to sample."""

    generator: str
    weights: str | None = None
    """A network trained by this suite, or the path of weights or of a run."""
    classifier: str | None = None
    """Likewise, for guidance."""
    base: str | None = None
    """Samples that an upsampler enlarges: a generator above it in the suite, or the path of an npz file."""
    image_size: int | None = None
    """Side of its images where that is not the suite's: they are then a base for others, and no row of the report."""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A classifier's digest is part of the plan, so it has one place only."""
        if "classifier" in self.options:
            raise ValueError("classifier stands beside options, not in them")

    @property
    def all_options(self) -> dict[str, Any]:
        """The options with the classifier among them, as the generator reads them."""
        return self.options | ({"classifier": self.classifier} if self.classifier else {})


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite file."""

    title: str
    data: str
    image_size: int | None = None
    features: str
    feature_weights: str | None = None
    """Weights of the feature network, as `--feature-weights` of `adm-bench evaluate`: the path of a file."""
    metrics: tuple[str, ...] = DEFAULT_METRICS
    num_images: int
    labels: str = "balanced"
    batch_size: int = 256
    seed: int = 0
    train: dict[str, TrainingSpec] = field(default_factory=dict)
    generators: dict[str, GeneratorSpec]

    def __post_init__(self) -> None:
        """Names must be known and numbers possible before anything starts."""
        if self.num_images < 1 or self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                f"num_images is {self.num_images}, batch_size {self.batch_size} and seed {self.seed}; "
                "expected 1 or more, 1 or more, and 0 or more"
            )
        if not self.generators:
            raise ValueError("there are no generators to compare; add a table [generators.NAME]")
        for name in (*self.train, *self.generators):
            if not FILE_NAME.fullmatch(name):
                raise ValueError(
                    f"the name {name!r} is to be part of file names; use letters, digits, '.', '_' and '-'"
                )


def read_suite(path: Path) -> Suite:
    """A suite from its TOML file; InputError where the file, or anything it names, is wrong."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable suite file ({error}); see examples/digits.toml") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML ({error})") from error
    with bad_input(path):
        suite = from_mapping(Suite, values)
        resolved(suite)
    above: list[str] = []
    for row, spec in suite.generators.items():
        for what, name, names in (
            ("weights", spec.weights, [*suite.train]),
            ("weights", spec.classifier, [*suite.train]),
            ("base", spec.base, above),
        ):
            if name is not None and name not in names and not Path(name).exists():
                raise InputError(f"{path}: {unknown_name(what, name, names)}; and no file or run has that path")
        above.append(row)
    known = {
        "features": [suite.features],
        "metrics": list(suite.metrics),
        "generators": [spec.generator for spec in suite.generators.values()],
    }
    for group, names in known.items():
        for name in names:
            if name not in registry.rows(group):
                raise InputError(f"{path}: {unknown_name(group.removesuffix('s'), name, registry.rows(group))}")
    if suite.feature_weights is not None and not Path(suite.feature_weights).is_file():
        raise InputError(
            f"{path}: feature_weights is {suite.feature_weights}: no such file; expected weights of features "
            f"'{suite.features}'"
        )
    for row, generator in suite.generators.items():
        with bad_input(f"{path}: generators.{row}.options"):
            from_mapping(registry.load("generators", generator.generator).Options, generator.all_options)
    return suite


def resolved(suite: Suite) -> dict[str, Any]:
    """The whole configuration of every network that a suite trains, as plain data."""
    return {name: to_mapping(with_changes(preset(spec.preset).config, spec.set)) for name, spec in suite.train.items()}
