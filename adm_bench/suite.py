"""A suite at work: one command trains, samples, measures and reports what a suite file names."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from adm_bench import progress, registry, reporting
from adm_bench.compute import network_cost, sampling_flops_per_image
from adm_bench.devices import describe_device
from adm_bench.errors import InputError, bad_input
from adm_bench.evaluation import evaluate, given_by, load_features, load_metrics
from adm_bench.extraction import Extraction
from adm_bench.files import check_writable, file_sha256, is_foreign, read_json, sole_user, write_json
from adm_bench.images.dataset import Dataset
from adm_bench.images.sources import open_dataset, open_image_set
from adm_bench.places import SUITE_FILE
from adm_bench.records import Circumstances, evaluated, measured, write_records
from adm_bench.reference_building import write_reference
from adm_bench.references import Reference
from adm_bench.runs import WEIGHTS_FILE, differences, find_weights
from adm_bench.sampling import build_generator, choose_labels, decide, sample
from adm_bench.suite_file import GeneratorSpec, Suite, TrainingSpec
from adm_bench.training import Routine, TrainingJob, train
from generators.adm.config import UpsamplerConfig
from generators.adm.presets import preset
from generators.configuration import from_mapping, to_mapping, with_changes
from metrics.protocol import Features
from reports.records import Record, from_json_line, to_json_line

Work = Callable[[bool], list[Record]]
"""Does a stage; told whether to replace what an earlier one left."""


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
        weights = None if suite.feature_weights is None else Path(suite.feature_weights)
        self.features: Features = load_features(suite.features, device, weights)
        self.metrics = load_metrics(suite.metrics)
        self.reported = [row for row, spec in suite.generators.items() if self._is_reported(spec)]
        if not self.reported:
            raise InputError(f"no generator makes images of the data's size, {self.dataset.image_size}; add one")
        self.records: list[Record] = []
        self.sampling_records: dict[str, list[Record]] = {}
        self.jobs = {name: self._job(spec) for name, spec in suite.train.items()}
        self._check()

    def _is_reported(self, spec: GeneratorSpec) -> bool:
        return spec.image_size in (None, self.dataset.image_size)

    def _dataset_of(self, image_size: int | None) -> Dataset:
        """The suite's data, at another size where a part of an upsampling stack needs it."""
        if image_size in (None, self.dataset.image_size):
            return self.dataset
        return open_dataset(self.suite.data, image_size)

    def _job(self, spec: TrainingSpec) -> TrainingJob:
        chosen = preset(spec.preset)
        config = with_changes(chosen.config, spec.set)
        return TrainingJob(
            trainer=chosen.trainer,
            config=config,
            dataset=self._dataset_of(config.model.image_size),
            device=self.device,
            precision=spec.precision,
            seed=self.suite.seed,
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
            if missing := metric.needs - given_by(self.features):
                raise InputError(
                    f"metrics: {metric.label} needs {', '.join(sorted(missing))}, which features {self.features.name} "
                    'do not give; name others, such as metrics = ["fid"]'
                )
        choose_labels(self.suite.labels, self.suite.num_images, self.dataset.num_classes, self.suite.seed)
        for row, spec in self.suite.generators.items():
            factory = registry.load("generators", spec.generator)
            self._check_base(row, spec, enlarges=hasattr(factory, "upsample"))
            if spec.weights not in self.jobs or not hasattr(factory, "check"):
                continue
            guide = self.jobs[spec.classifier].config if spec.classifier in self.jobs else None
            with bad_input(f"generators.{row}"):
                factory.check(from_mapping(factory.Options, spec.all_options), self.jobs[spec.weights].config, guide)

    def _check_base(self, row: str, spec: GeneratorSpec, *, enlarges: bool) -> None:
        """An upsampler needs a base of the size that its network enlarges, and nothing else has a base."""
        if enlarges != (spec.base is not None):
            what = "enlarges samples; give it a base" if enlarges else "enlarges nothing; it can have no base"
            raise InputError(f"generators.{row}: generator '{spec.generator}' {what}")
        config = self.jobs[spec.weights].config if spec.weights in self.jobs else None
        base = self.suite.generators.get(spec.base or "")
        if base is None or not isinstance(config, UpsamplerConfig):
            return
        found, expected = base.image_size or self.dataset.image_size, config.model.low_resolution
        if found != expected:
            raise InputError(f"generators.{row}: its base {spec.base} has images of {found}; it enlarges {expected}")

    def run(self) -> None:
        """Do everything that is not done, then write the report."""
        self._check_folder()
        check_writable(self.folder)
        with sole_user(self.folder):
            self._run_stages()

    def _check_folder(self) -> None:
        """InputError where the folder is somebody else's, or holds rows that this suite would drop."""
        description = self.folder / SUITE_FILE
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
        description = self.folder / SUITE_FILE
        if not description.exists():
            write_json(description, to_mapping(self.suite))
        self._reference()
        for name, spec in self.suite.train.items():
            self._train(name, spec, self.jobs[name])
        for row, generator in self.suite.generators.items():
            self._sample(row, generator)
            if row in self.reported:
                self._evaluate(row, generator)
        write_json(description, to_mapping(self.suite))  # a changed suite, now that no stage has refused it
        write_records(self.folder / reporting.RECORDS_FILE, self.records)
        for row in self.reported:
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
        plan = {"data": self.dataset.digest(), "features": f"{self.features.name} {self.features.digest}"}

        def work(overwrite: bool) -> list[Record]:  # noqa: ARG001  what is derived is always replaced
            write_reference(self.dataset, self.features, self._reference_path, overwrite=True)
            return []

        self._stage("reference", plan, self._reference_path, work, costly=False)

    def _train(self, name: str, spec: TrainingSpec, job: TrainingJob) -> None:
        folder = self._training_folder(name)

        def work(overwrite: bool) -> list[Record]:
            result = train(job, folder, routine=Routine(checkpoint_every=spec.checkpoint_every), overwrite=overwrite)
            assert result is not None  # a suite sets no limit of time
            settings = {"preset": spec.preset, **spec.set}
            circumstances = self._circumstances(
                name, num_images=len(self.dataset), settings=settings, precision=spec.precision
            )
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

    def _base(self, name: str | None) -> Path | None:
        """Samples by the name of a generator of this suite, or by path."""
        if name is None:
            return None
        return self._samples(name) if name in self.suite.generators else Path(name)

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
        dataset = self._dataset_of(spec.image_size)
        generator = build_generator(spec.generator, options, device=self.device, dataset=dataset, weights=weights)
        job = decide(
            name,
            generator,
            {"generator": spec.generator, "options": spec.options, "inputs": inputs},
            num_images=suite.num_images,
            labels=suite.labels if spec.base is None else None,
            base=self._base(spec.base),
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
            row = self._row(name, spec, inputs, batch_size=suite.batch_size)
            return measured(_with_base(values, self.sampling_records.get(spec.base or "", [])), row)

        before = len(self.records)
        self._stage(f"sample/{name}", job.plan(), self._samples(name), work, costly=True)
        self.sampling_records[name] = self.records[before:]
        if name not in self.reported:
            del self.records[before:]

    def _row(self, name: str, spec: GeneratorSpec, inputs: Mapping[str, str], **more: Any) -> Circumstances:
        settings = {**({} if spec.generator == name else {"generator": spec.generator}), **spec.options, **more}
        precision = spec.options.get("precision", "fp32")
        return self._circumstances(
            name, num_images=self.suite.num_images, settings=settings, inputs=inputs, precision=precision
        )

    def _evaluate(self, name: str, spec: GeneratorSpec) -> None:
        inputs = {"samples": file_sha256(self._samples(name)), "reference": file_sha256(self._reference_path)}
        plan = {
            "inputs": inputs,
            "features": f"{self.features.name} {self.features.digest}",
            "metrics": list(self.suite.metrics),
        }

        def work(overwrite: bool) -> list[Record]:  # noqa: ARG001  what is derived is always replaced
            reference, samples = Reference.open(self._reference_path), open_image_set(self._samples(name))
            evaluation = evaluate(reference, samples, Extraction(features=self.features), self.metrics)
            assert evaluation is not None  # a suite runs in one process
            return evaluated(evaluation, self.metrics, self._row(name, spec, inputs))

        self._stage(f"evaluate/{name}", plan, self._samples(name), work, costly=False)


def _with_base(values: Mapping[str, float], base: Sequence[Record]) -> dict[str, float]:
    """What a stack costs: an upsampler's costs and those of the samples it started from."""
    total = dict(values)
    for record in base:
        if record.quantity == "sampling_images_per_sec" and record.value:
            total[record.quantity] = 1 / (1 / total[record.quantity] + 1 / record.value)
        elif record.quantity in total:
            total[record.quantity] += record.value or 0
    return total
