"""What is looked at while a network trains: a validation set, a picture of samples, their FID."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from adm_bench import registry
from adm_bench.devices import describe_device
from adm_bench.disk import room_for
from adm_bench.errors import InputError, bad_input
from adm_bench.evaluation import evaluate
from adm_bench.extraction import Extraction
from adm_bench.files import PARTIAL_SUFFIX, atomic_path, file_sha256
from adm_bench.images.batches import TrainingBatches
from adm_bench.images.dataset import Dataset, Labels
from adm_bench.images.encoded import EncodedImages
from adm_bench.images.iterated import IteratedImages
from adm_bench.ranks import Ranks
from adm_bench.records import Circumstances, evaluated, write_records
from adm_bench.references import Reference
from adm_bench.runs import EVALUATIONS_FILE, SAMPLES_FOLDER
from adm_bench.sampling import build_generator, choose_labels, image_seeds
from adm_bench.training import GoOn, TrainingJob
from adm_bench.training_data import PassedOver, require_fit
from adm_bench.training_log import Totals
from generators.adm.config import GuideConfig
from generators.configuration import from_mapping, to_mapping
from generators.protocol import Generator, Trainable, Upsampler, Validated
from generators.unet.checkpoint import WeightsHeader, write_weights
from metrics.protocol import Features, Metric
from reports.figures import png_bytes, sample_grid
from reports.records import read_records

BATCH_SIZE = 64
SMALLEST_TILE = 32


@dataclass(frozen=True, kw_only=True)
class Validation:
    """`adm_bench.training.Observation`: what the trainer says of images that it does not learn from."""

    event: ClassVar[str] = "validation"
    every: int
    dataset: Dataset
    skip_bad: int = 0
    """As of `adm_bench.training.TrainingJob`."""

    def check(self, job: TrainingJob, ranks: Ranks) -> None:
        """See `Observation`."""
        if not hasattr(registry.load("trainers", job.trainer), "validate"):
            raise InputError(
                f"trainer '{job.trainer}' cannot be validated, only classifiers can; leave --validation away"
            )
        require_fit(self.dataset, job.config)
        if len(self.dataset) < ranks.size:
            raise InputError(
                f"--validation {self.dataset.name}: holds {len(self.dataset)} images, which {ranks.size} processes "
                "cannot share; give as many or more"
            )
        names = [each.class_names if isinstance(each, EncodedImages) else () for each in (job.dataset, self.dataset)]
        if all(names) and names[0] != names[1]:
            odd = min({*names[0]} ^ {*names[1]})
            raise InputError(
                f"--validation {self.dataset.name}: has other classes than {job.dataset.name}, such as '{odd}' on one "
                "side only; labels are the ranks of names, so give both the same classes"
            )

    def observe(self, trainer: Trainable, step: int, ranks: Ranks, go_on: GoOn) -> Mapping[str, Any]:  # noqa: ARG002
        """Go through the images in their order, cropped in the middle, with the same noise every time.

        Fewer than the processes' number may be left out at the end, for all take as many. In the place of an unreadable
        one another is taken, always the same.
        """
        assert isinstance(trainer, Validated)  # as checked
        totals, num_images = Totals(), 0
        shared = len(self.dataset) // ranks.size
        batches = TrainingBatches(
            self.dataset,
            batch_size=min(BATCH_SIZE, shared) * ranks.size,
            seed=0,
            shuffled=False,
            rank=ranks.rank,
            size=ranks.size,
            passes_over=self.skip_bad > 0,
        )
        for batch in batches.whole_pass():
            go_on()
            totals.add(trainer.validate(batch))
            num_images += len(batch.images) * ranks.size
        self._passed_over.join(batches.passed_over, ranks)
        unreadable = len(self._passed_over.indices)
        return {"images": num_images, **({"unreadable": unreadable} if unreadable else {}), **totals.taken()}

    @cached_property
    def _passed_over(self) -> PassedOver:
        """What all validations of a start have met: each image is told of once."""
        return PassedOver(self.skip_bad)


@dataclass(frozen=True, kw_only=True)
class TrainedSamples:
    """Samples of a network as it is in the midst of its training: of the averaged weights, always from the same seeds.

    Processes share the work. An upsampler enlarges reductions of the images that training begins with: the first of
    the data set are often of one class.
    """

    job: TrainingJob
    folder: Path
    num_images: int
    options: Mapping[str, Any]
    """Of the generator that has the trainer's name."""

    def check(self) -> None:
        """InputError where there is nothing to sample, or no such way to."""
        if isinstance(self.job.config, GuideConfig):
            raise InputError("a classifier makes no samples; leave --samples-every and --evaluate-every away")
        factory = registry.load("generators", self.job.trainer)
        if hasattr(factory, "check"):
            with bad_input("--sampling-steps"):
                factory.check(from_mapping(factory.Options, dict(self.options)), self.job.config, None)

    @cached_property
    def labels(self) -> Labels | None:
        """Of the samples, (num_images,): of classes that the data has, though the network may know more."""
        data = self.job.dataset
        if self.job.config.model.num_classes is None:
            return None
        if self.job.trainer == "upsampler" and data.labels is not None:
            return data.labels[self._enlarged]
        return choose_labels("balanced", self.num_images, data.num_classes, self.job.seed)

    @cached_property
    def _enlarged(self) -> list[int]:
        """Which images of the data set an upsampler enlarges."""
        job = self.job
        batches = TrainingBatches(job.dataset, batch_size=1, seed=job.seed, passes_over=job.skip_bad > 0)
        return batches.taken(self.num_images)

    @contextmanager
    def opened(self, trainer: Trainable, ranks: Ranks) -> Iterator[tuple[Generator | Upsampler, str]]:
        """The generator of the weights as they are, and the SHA-256 of their file, on the first process. Collective.

        That file has the bytes of the one in a checkpoint of the same step.
        """
        weights = trainer.weights()
        path = self.folder / f".weights{PARTIAL_SUFFIX}"  # what is left of one is removed at the next start
        try:
            sha256 = ""
            with ranks.agreeing():
                if ranks.is_first:
                    header = WeightsHeader(kind=self.job.trainer, config=to_mapping(self.job.config))
                    num_bytes = sum(tensor.numel() * tensor.itemsize for tensor in weights.values())
                    with room_for(self.folder, num_bytes):
                        write_weights(path, header, weights)
                    sha256 = file_sha256(path)
            del weights  # an accelerator may need the room
            with ranks.agreeing():
                generator = build_generator(self.job.trainer, dict(self.options), device=self.job.device, weights=path)
            if ranks.is_first:
                path.unlink()
            yield generator, sha256
        finally:
            if ranks.is_first:
                path.unlink(missing_ok=True)

    def draw(self, generator: Generator | Upsampler, ranks: Ranks, go_on: GoOn) -> Iterator[Tensor]:
        """The samples in order, uint8 (B, 3, H, W), the same on every process. Collective: go through all of it."""
        share = min(self._at_a_time(ranks), math.ceil(self.num_images / ranks.size))
        for start in range(0, self.num_images, share * ranks.size):
            # all processes draw as many; what is past the end is drawn in vain
            mine = [min(start + ranks.rank * share + place, self.num_images - 1) for place in range(share)]
            images = ranks.gather(self._draw(generator, mine, go_on).cpu())
            yield images[: self.num_images - start]

    def _at_a_time(self, ranks: Ranks) -> int:
        """Images that a process draws together: no more than it trains on together, which takes more memory."""
        training = self.job.config.training
        return min(BATCH_SIZE, training.microbatch_size or BATCH_SIZE, training.batch_size // ranks.size)

    def _draw(self, generator: Generator | Upsampler, indices: Sequence[int], go_on: GoOn) -> Tensor:
        seeds = image_seeds(self.job.seed, indices)
        labels = None if self.labels is None else torch.from_numpy(self.labels[list(indices)])
        try:
            if isinstance(generator, Upsampler):
                return generator.upsample(self.bases(indices, generator.base_size), seeds, labels, go_on)
            return generator.sample(seeds, labels, go_on)
        except FloatingPointError as error:
            raise InputError(f"{self.folder}: {error}; the network has diverged") from error

    def bases(self, indices: Sequence[int], side: int) -> Tensor:
        """What an upsampler enlarges: uint8 (B, 3, side, side)."""
        images, _ = self.job.dataset.read([self._enlarged[index] for index in indices])
        return F.adaptive_avg_pool2d(torch.from_numpy(images).float(), side).round().to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class SampleGrid:
    """`adm_bench.training.Observation`: a PNG of samples."""

    event: ClassVar[str] = "samples"
    every: int
    samples: TrainedSamples
    columns: int

    def check(self, job: TrainingJob, ranks: Ranks) -> None:  # noqa: ARG002  the samples know it
        """See `Observation`."""
        self.samples.check()

    def observe(self, trainer: Trainable, step: int, ranks: Ranks, go_on: GoOn) -> Mapping[str, Any]:
        """Write the picture; its place is logged."""
        with self.samples.opened(trainer, ranks) as (generator, _):
            images = torch.cat(list(self.samples.draw(generator, ranks, go_on)))
        path = self.samples.folder / SAMPLES_FOLDER / f"step_{step:08d}.png"
        with ranks.agreeing():
            if ranks.is_first:
                pixels: NDArray[np.uint8] = images.permute(0, 2, 3, 1).contiguous().numpy()
                png = png_bytes(sample_grid(pixels, self.columns, math.ceil(SMALLEST_TILE / pixels.shape[1])))
                with room_for(self.samples.folder, len(png)), atomic_path(path) as temporary:
                    temporary.write_bytes(png)
        return {"picture": f"{SAMPLES_FOLDER}/{path.name}"}


@dataclass(frozen=True, kw_only=True)
class OnlineEvaluation:
    """`adm_bench.training.Observation`: metrics of samples against a reference, a point of the curve of FID."""

    event: ClassVar[str] = "evaluation"
    every: int
    samples: TrainedSamples
    reference: Reference
    features: Features
    metrics: Sequence[Metric]

    def check(self, job: TrainingJob, ranks: Ranks) -> None:  # noqa: ARG002  the protocol's
        """See `Observation`."""
        self.samples.check()
        size = job.config.model.image_size
        found = self.reference.image_shape
        if found not in (None, (size, size)):
            raise InputError(
                f"--reference {self.reference.path}: is of images of {found[0]} x {found[1]}, but model.image_size is "
                f"{size}; give a reference of that size"
            )
        needs = frozenset[str]().union(*(metric.needs for metric in self.metrics))
        self.reference.check(self.features, needs)
        for metric in self.metrics:
            if self.samples.num_images < metric.min_images:
                raise InputError(
                    f"--evaluate-images {self.samples.num_images}: {metric.label} needs {metric.min_images}"
                )

    def observe(self, trainer: Trainable, step: int, ranks: Ranks, go_on: GoOn) -> Mapping[str, Any]:
        """Measure; the numbers with their circumstances go to a file of the run too.

        Numbers, seeds and labels are those of `adm-bench sample` and `evaluate` with a checkpoint's averaged weights.
        """
        with self.samples.opened(trainer, ranks) as (generator, weights_sha256):
            drawn = self.samples.draw(generator, ranks, go_on)
            if not ranks.is_first:
                for _ in drawn:
                    pass
                return {}
            job, shape = self.samples.job, (generator.image_size,) * 2
            images = IteratedImages(f"step {step}", drawn, self.samples.num_images, shape, self.samples.labels)
            evaluation = evaluate(self.reference, images, Extraction(features=self.features), self.metrics)
        assert evaluation is not None  # this is the first process
        circumstances = Circumstances(
            run=self.samples.folder.name,
            generator=job.trainer,
            device=describe_device(job.device),
            seed=job.seed,
            world_size=ranks.size,
            settings={**self.samples.options, "step": step, "training_images": step * job.config.training.batch_size},
            inputs={"weights": weights_sha256, "reference": self.reference.digest()},
        )
        self._write(step, evaluated(evaluation, self.metrics, circumstances))
        return evaluation.values

    def _write(self, step: int, records: Sequence[Any]) -> None:
        """Add records to the run's; those of this step and later ones, from before an interruption, go."""
        path = self.samples.folder / EVALUATIONS_FILE
        before = [*read_records(path)] if path.exists() else []
        write_records(path, [*(record for record in before if int(str(record.settings["step"])) < step), *records])
