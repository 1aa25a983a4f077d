"""Training: a trainer, a data set and a run's folder, put together and kept going."""

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adm_bench import progress, registry
from adm_bench.errors import InputError, bad_input
from adm_bench.files import atomic_path, read_json, write_json, write_text
from adm_bench.images.dataset import Dataset, TrainingOrder
from adm_bench.runs import TrainingRun
from generators.adm.config import NetworkConfig
from generators.configuration import to_mapping
from generators.diffusion.noise import Stream, mix_seed
from generators.protocol import Trainable, TrainingBatch
from generators.unet.checkpoint import WeightsHeader, write_weights

LOG_EVERY_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training run, completely decided."""

    trainer: str
    config: NetworkConfig
    dataset: Dataset
    device: torch.device
    precision: str = "fp32"
    seed: int = 0
    checkpoint_every: int = 500

    def plan(self) -> dict[str, Any]:
        """What decides the weights, as plain data; a run goes on only under an equal plan."""
        return {
            "kind": "training",
            "trainer": self.trainer,
            "config": to_mapping(self.config),
            "data": {"name": self.dataset.name, "digest": self.dataset.digest(), "images": len(self.dataset)},
            "precision": self.precision,
            "seed": self.seed,
        }

    def check(self) -> None:
        """InputError where data and network do not fit each other."""
        model, data = self.config.model, self.dataset
        if data.image_size != model.image_size:
            raise InputError(
                f"data set {data.name} has size {data.image_size}, but model.image_size is {model.image_size}"
            )
        if model.num_classes is not None and data.num_classes is None:
            raise InputError(f"data set {data.name} has no labels, but model.num_classes is {model.num_classes}")
        if model.num_classes is not None and (data.num_classes or 0) > model.num_classes:
            raise InputError(
                f"data set {data.name} has {data.num_classes} classes, but model.num_classes is {model.num_classes}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished run took."""

    steps: int
    images: int
    sec: float
    images_per_sec: float
    """Median over stretches of steps."""
    num_parameters: int


def train(job: TrainingJob, folder: Path, *, overwrite: bool = False) -> TrainingResult:
    """Train to the end, from the newest checkpoint if there is one; a finished run is left as it is.

    The same job gives the same weights, bit for bit on a CPU, however often it was interrupted.
    """
    job.check()
    run = TrainingRun(folder)
    with run.opened(job.plan(), overwrite=overwrite):
        return _train_in(run, job)


def _train_in(run: TrainingRun, job: TrainingJob) -> TrainingResult:
    if run.result.exists() and run.weights.exists():
        progress.say(f"{run.folder}: already trained; nothing to do")
        return TrainingResult(**read_json(run.result))
    torch.manual_seed(mix_seed(job.seed, Stream.WEIGHTS))
    trainer: Trainable = registry.load("trainers", job.trainer)(job.config, job.device, job.precision)
    start, elapsed_sec, rates = 0, 0.0, []
    checkpoint = run.latest()
    if checkpoint is not None:
        state, reached = checkpoint
        with bad_input(run.folder):
            trainer.load_state(state)
        start, elapsed_sec, rates = reached["step"], reached["elapsed_sec"], reached["images_per_sec"]
        progress.say(f"{run.folder}: going on from step {start}")
    _cut_log(run.log, start)
    elapsed_sec = _run_steps(job, run, trainer, start, elapsed_sec, rates)
    weights = trainer.weights()
    with atomic_path(run.weights) as temporary:
        write_weights(temporary, WeightsHeader(kind=job.trainer, config=to_mapping(job.config)), weights)
    steps = job.config.training.steps
    result = TrainingResult(
        steps=steps,
        images=steps * job.config.training.batch_size,
        sec=elapsed_sec,
        images_per_sec=statistics.median(rates),
        num_parameters=sum(tensor.numel() for tensor in weights.values()),
    )
    write_json(run.result, to_mapping(result))
    return result


def _run_steps(
    job: TrainingJob, run: TrainingRun, trainer: Trainable, start: int, elapsed_sec: float, rates: list[float]
) -> float:
    """Take the remaining steps; returns the seconds of training in all, and extends `rates`."""
    config = job.config.training
    order = TrainingOrder(len(job.dataset), config.batch_size, job.seed)
    title = f"train {run.folder.name}"
    began = last = time.perf_counter()
    last_step = start
    with progress.stage(title, config.steps, "steps", done=start) as advance, run.log.open("a") as log:
        for step in range(start, config.steps):
            images, labels = job.dataset.read(order.indices(step))
            first = step * config.batch_size
            batch = TrainingBatch(
                step=step,
                images=torch.from_numpy(images),
                labels=None if labels is None else torch.from_numpy(labels),
                seeds=[
                    mix_seed(job.seed, Stream.TRAINING_IMAGES, position)
                    for position in range(first, first + len(images))
                ],
            )
            # Every step has random numbers of its own, so that no generator's state need be kept.
            torch.manual_seed(mix_seed(job.seed, Stream.TRAINING_STEPS, step))
            report = trainer.train_step(batch)
            values = {name: mean.total / mean.count for name, mean in report.means.items()} | dict(report.values)
            done = step + 1
            _require_finite(values, step, run)
            advance(1, note=f"loss {values['loss']:.4f}")
            if done % LOG_EVERY_STEPS == 0 or done == config.steps:
                now = time.perf_counter()
                rates.append((done - last_step) * config.batch_size / (now - last))
                last, last_step = now, done
                log.write(json.dumps({"step": step, **values, "images_per_sec": rates[-1]}) + "\n")
                log.flush()
            if done % job.checkpoint_every == 0 and done < config.steps:
                sec = elapsed_sec + time.perf_counter() - began
                run.save(done, trainer.state(), {"elapsed_sec": sec, "images_per_sec": rates})
                last, last_step = time.perf_counter(), done
    return elapsed_sec + time.perf_counter() - began


def _require_finite(values: Mapping[str, float], step: int, run: TrainingRun) -> None:
    if not abs(values["loss"]) < float("inf"):
        kept = run.checkpoints()
        raise InputError(
            f"{run.folder}: the loss is {values['loss']} at step {step}; lower the learning rate or use "
            f"precision fp32 (last good checkpoint: {kept[-1].name if kept else 'none'})"
        )


def _cut_log(log: Path, start: int) -> None:
    """Forget what was logged after the checkpoint that the run goes on from; those steps come again."""
    if log.exists():
        complete = [line for line in log.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in complete if json.loads(line)["step"] < start]
        write_text(log, "".join(f"{line}\n" for line in kept))
