"""Suites: one file that names data, generators and measurements; one command that does it all."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from adm_bench import progress, registry, reporting
from adm_bench.compute import network_cost, sampling_flops_per_image
from adm_bench.devices import describe_device
from adm_bench.errors import InputError, bad_input
from adm_bench.evaluation import DEFAULT_METRICS, evaluate, load_features, load_metrics
from adm_bench.files import check_writable, file_sha256, is_foreign, read_json, sole_user, write_json
from adm_bench.images.dataset import Dataset
from adm_bench.images.sources import open_dataset
from adm_bench.records import Circumstances, evaluated, measured, write_records
from adm_bench.references import write_reference
from adm_bench.runs import WEIGHTS_FILE, differences, find_weights
from adm_bench.sampling import SamplingJob, build_generator, choose_labels, sample
from adm_bench.training import TrainingJob, train
from generators.adm.presets import preset
from generators.configuration import from_mapping, to_mapping, unknown_name, with_changes
from metrics.protocol import Features
from reports.records import Record, from_json_line, to_json_line

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Work = Callable[[bool], list[Record]]
"""Does a stage; told whether to replace what an earlier one left."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """One network to train: a preset and what differs from it."""

    preset: str
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted fields and their values, such as `"training.steps" = 100`."""
    checkpoint_every: int = 500

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
    for spec in suite.generators.values():
        for weights in (spec.weights, spec.classifier):
            if weights is not None and weights not in suite.train and not Path(weights).exists():
                raise InputError(
                    f"{path}: {unknown_name('weights', weights, suite.train)}; and no file or run has that path"
                )
    known = {
        "features": [suite.features],
        "metrics": list(suite.metrics),
        "generators": [spec.generator for spec in suite.generators.values()],
    }
    for group, names in known.items():
        for name in names:
            if name not in registry.rows(group):
                raise InputError(f"{path}: {unknown_name(group.removesuffix('s'), name, registry.rows(group))}")
    for row, generator in suite.generators.items():
        with bad_input(f"{path}: generators.{row}.options"):
            from_mapping(registry.load("generators", generator.generator).Options, generator.all_options)
    return suite


def resolved(suite: Suite) -> dict[str, Any]:
    """The whole configuration of every network that a suite trains, as plain data."""
    return {name: to_mapping(with_changes(preset(spec.preset).config, spec.set)) for name, spec in suite.train.items()}


class SuiteRun:
    """A suite at work in its folder; every stage is kept when it is finished and reused afterwards.

    A finished stage whose settings have changed is an InputError where doing it again would lose training
    or samples, unless `overwrite`; what is derived from those is simply made anew.
    """

    def __init__(self, suite: Suite, folder: Path, device: torch.device, *, overwrite: bool = False) -> None:
        self.suite = suite
        self.folder = folder
        self.device = device
        self.overwrite = overwrite
        self.dataset: Dataset = open_dataset(suite.data, suite.image_size)
        self.features: Features = load_features(suite.features, device)
        self.metrics = load_metrics(suite.metrics)
        self.records: list[Record] = []
        self.jobs = {name: self._job(spec) for name, spec in suite.train.items()}
        self._check()

    def _job(self, spec: TrainingSpec) -> TrainingJob:
        chosen = preset(spec.preset)
        return TrainingJob(
            trainer=chosen.trainer,
            config=with_changes(chosen.config, spec.set),
            dataset=self.dataset,
            device=self.device,
            seed=self.suite.seed,
            checkpoint_every=spec.checkpoint_every,
        )

    def _check(self) -> None:
        """Refuse, before any work, what a later stage would refuse; InputError."""
        for job in self.jobs.values():
            job.check()
        for metric in self.metrics:
            if self.suite.num_images < metric.min_images:
                raise InputError(
                    f"num_images is {self.suite.num_images}; {metric.label} needs {metric.min_images} or more"
                )
        choose_labels(self.suite.labels, self.suite.num_images, self.dataset.num_classes, self.suite.seed)
        for row, spec in self.suite.generators.items():
            factory = registry.load("generators", spec.generator)
            if spec.weights not in self.jobs or not hasattr(factory, "check"):
                continue
            guide = self.jobs[spec.classifier].config if spec.classifier in self.jobs else None
            with bad_input(f"generators.{row}"):
                factory.check(from_mapping(factory.Options, spec.all_options), self.jobs[spec.weights].config, guide)

    def run(self) -> None:
        """Do everything that is not done, then write the report."""
        self._check_folder()
        check_writable(self.folder)
        with sole_user(self.folder):
            self._run_stages()

    def _check_folder(self) -> None:
        """InputError where the folder is somebody else's, or holds rows that this suite would drop."""
        description = self.folder / reporting.SUITE_FILE
        if not description.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(map(is_foreign, self.folder.iterdir()))):
                raise InputError(f"{self.folder}: exists and is no suite run; choose another --out")
            return
        dropped = set(read_json(description)["generators"]) - set(self.suite.generators)
        if dropped and not self.overwrite:
            raise InputError(
                f"{self.folder}: holds a suite with other rows ({', '.join(sorted(dropped))}), which this one would "
                "drop; choose another --out, or pass --overwrite"
            )

    def _run_stages(self) -> None:
        description = self.folder / reporting.SUITE_FILE
        if not description.exists():
            write_json(description, to_mapping(self.suite))
        self._reference()
        for name, spec in self.suite.train.items():
            self._train(name, spec, self.jobs[name])
        for row, generator in self.suite.generators.items():
            self._sample(row, generator)
            self._evaluate(row, generator)
        write_json(description, to_mapping(self.suite))  # a changed suite, now that no stage has refused it
        write_records(self.folder / reporting.RECORDS_FILE, self.records)
        for row in self.suite.generators:
            reporting.write_grid(self._samples(row), self.folder, row, self.dataset.num_classes)
        reporting.write_reports(self.folder)

    def _stage(self, name: str, plan: Mapping[str, Any], output: Path, work: Work, *, costly: bool) -> None:
        """Do a stage, or take up its records where it was finished under the same plan."""
        kept = self.folder / "stages" / f"{name.replace('/', '-')}.json"
        if kept.exists() and output.exists():
            saved = read_json(kept)
            changed = differences(saved["plan"], plan)
            if not changed:
                progress.say(f"{name}: reused, finished {saved['finished']}")
                self.records += [from_json_line(line) for line in saved["records"]]
                return
            if costly and not self.overwrite:
                raise InputError(
                    f"{self.folder}: stage {name} was done with other settings ({'; '.join(changed[:3])}); "
                    "choose another --out, or pass --overwrite to do it again"
                )
        records = work(self.overwrite)
        self.records += records
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [to_json_line(record) for record in records]
        write_json(kept, {"plan": plan, "finished": finished, "records": lines})

    def _circumstances(self, row: str, **more: Any) -> Circumstances:
        device = describe_device(self.device)
        return Circumstances(run=self.folder.name, generator=row, device=device, seed=self.suite.seed, **more)

    @property
    def _reference_path(self) -> Path:
        return self.folder / "reference.npz"

    def _training_folder(self, name: str) -> Path:
        return self.folder / "train" / name

    def _samples(self, name: str) -> Path:
        return self.folder / "samples" / f"{name}.npz"

    def _reference(self) -> None:
        plan = {"data": self.dataset.digest(), "features": self.features.digest}

        def work(overwrite: bool) -> list[Record]:  # noqa: ARG001  what is derived is always replaced
            write_reference(self.dataset, self.features, self._reference_path)
            return []

        self._stage("reference", plan, self._reference_path, work, costly=False)

    def _train(self, name: str, spec: TrainingSpec, job: TrainingJob) -> None:
        folder = self._training_folder(name)

        def work(overwrite: bool) -> list[Record]:
            result = train(job, folder, overwrite=overwrite)
            settings = {"preset": spec.preset, **spec.set}
            circumstances = self._circumstances(name, num_images=len(self.dataset), settings=settings)
            cost = network_cost(job.config)
            values = {
                "parameters": cost.parameters,
                "forward_macs_per_image": cost.forward_macs_per_image,
                "forward_flops_per_image": cost.forward_flops_per_image,
                "training_images_per_sec": result.images_per_sec,
                "training_sec": result.sec,
                "training_images": result.images,
            }
            return measured(values, circumstances)

        self._stage(f"train/{name}", job.plan(), folder / WEIGHTS_FILE, work, costly=True)

    def _weights(self, name: str) -> Path:
        """Weights by the name of a network trained here, or by path."""
        if name in self.suite.train:
            return self._training_folder(name) / WEIGHTS_FILE
        return find_weights(Path(name), "weights")

    def _sample(self, name: str, spec: GeneratorSpec) -> None:
        suite = self.suite
        weights = self._weights(spec.weights) if spec.weights else None
        options = dict(spec.options)
        inputs = {"data": self.dataset.digest()}
        if weights is not None:
            inputs["weights"] = file_sha256(weights)
        if spec.classifier is not None:
            options["classifier"] = str(self._weights(spec.classifier))
            inputs["classifier"] = file_sha256(self._weights(spec.classifier))
        generator = build_generator(spec.generator, options, device=self.device, dataset=self.dataset, weights=weights)
        job = SamplingJob(
            name=name,
            generator=generator,
            description={"generator": spec.generator, "options": spec.options, "inputs": inputs},
            num_images=suite.num_images,
            labels=choose_labels(suite.labels, suite.num_images, generator.num_classes, suite.seed),
            seed=suite.seed,
            batch_size=suite.batch_size,
        )

        def work(overwrite: bool) -> list[Record]:
            result = sample(job, self._samples(name), overwrite=overwrite, reuse=True)
            flops = sampling_flops_per_image(generator)
            values = {
                "sampling_images_per_sec": result.images_per_sec,
                "network_evaluations_per_image": generator.network_evaluations,
                "sampling_flops_per_image": flops,
            }
            return measured(values, self._row(name, spec, inputs, batch_size=suite.batch_size))

        self._stage(f"sample/{name}", job.plan(), self._samples(name), work, costly=True)

    def _row(self, name: str, spec: GeneratorSpec, inputs: Mapping[str, str], **more: Any) -> Circumstances:
        settings = {**({} if spec.generator == name else {"generator": spec.generator}), **spec.options, **more}
        return self._circumstances(name, num_images=self.suite.num_images, settings=settings, inputs=inputs)

    def _evaluate(self, name: str, spec: GeneratorSpec) -> None:
        inputs = {"samples": file_sha256(self._samples(name)), "reference": file_sha256(self._reference_path)}
        plan = {"inputs": inputs, "features": self.features.digest, "metrics": list(self.suite.metrics)}

        def work(overwrite: bool) -> list[Record]:  # noqa: ARG001  what is derived is always replaced
            evaluation = evaluate(self._reference_path, self._samples(name), self.features, self.metrics)
            return evaluated(evaluation, self.metrics, self._row(name, spec, inputs))

        self._stage(f"evaluate/{name}", plan, self._samples(name), work, costly=False)
