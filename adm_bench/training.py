"""Training: a trainer, a data set and a run's folder, put together and kept going."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from adm_bench import progress, registry
from adm_bench.checkpoints import KEPT, Checkpoint, step_name
from adm_bench.conversion import begin_from, state_from_openai
from adm_bench.devices import enough_memory
from adm_bench.errors import InputError, bad_input
from adm_bench.files import file_sha256, read_json, write_json
from adm_bench.images.batches import TrainingBatches, training_record
from adm_bench.images.dataset import Dataset
from adm_bench.interruption import InterruptedWorkError, Interruption, interruptible
from adm_bench.ranks import Ranks
from adm_bench.runs import Reached, TrainingResult, TrainingRun, require_same
from adm_bench.training_data import PassedOver, require_fit
from adm_bench.training_log import Totals, TrainingLog, observation_note, step_note
from adm_bench.utilisation import Gauge
from generators.adm.config import NetworkConfig
from generators.configuration import to_mapping
from generators.diffusion.noise import Stream, mix_seed
from generators.protocol import Parallel, StepReport, Trainable
from generators.training.alone import Alone
from generators.unet.checkpoint import WeightsHeader

GoOn = Callable[[], None]
"""To be called now and then in long work, by all processes alike; it raises where a signal asks them to end."""
TIME_IS_UP = 1
"""What processes tell each other beside the numbers of signals, of which no one that is handled here is 1."""
UNREADABLE = 1000
"""That one of them has met an unreadable image, which they then speak about first."""
WITH_LESS_MEMORY = (
    "give --set training.microbatch_size=N with fewer images, --set training.recompute_activations=true or --sharding "
    "full, under each of which the run goes on"
)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training run, completely decided."""

    trainer: str
    config: NetworkConfig
    dataset: Dataset
    device: torch.device
    precision: str = "fp32"
    seed: int = 0
    start_from: Path | None = None
    """A file of OpenAI's training to begin with, instead of fresh weights."""
    skip_bad: int = 0
    """As many images may be unreadable: others, which their places decide, are taken instead; 0 makes one an error."""

    def plan(self) -> dict[str, Any]:
        """What decides the weights, as plain data; a run goes on only under an equal plan."""
        plan = {
            "kind": "training",
            "trainer": self.trainer,
            "config": to_mapping(self.config),
            "data": {"name": self.dataset.name, **training_record(self.dataset)},
            "precision": self.precision,
            "seed": self.seed,
        }
        return plan if self.start_from is None else {**plan, "start_from": file_sha256(self.start_from)}

    def check(self) -> None:
        """InputError where data and network do not fit each other, or where there is no file to begin with."""
        require_fit(self.dataset, self.config)
        if self.start_from is not None and not self.start_from.is_file():
            found = "is a folder" if self.start_from.is_dir() else "no such file"
            raise InputError(
                f"--from {self.start_from}: {found}; give a modelNNNNNN.pt or a weights file, such as the "
                "model.safetensors of a checkpoint"
            )

    def check_start(self) -> None:
        """InputError where a run cannot begin with `start_from`, of which everything is read."""
        if self.start_from is None:
            return
        done = state_from_openai(self.start_from, self.config)[1]
        if done >= self.config.training.steps:
            raise InputError(
                f"--from {self.start_from}: {done} steps are done, and training.steps is {self.config.training.steps}; "
                "give --steps a larger number, which counts from the very beginning"
            )


class Observation(Protocol):
    """Looks at a network while it trains, every so many steps and at the end; what it sees changes nothing."""

    event: ClassVar[str]
    """What its line in the log is called."""

    @property
    def every(self) -> int:
        """Steps from one observation to the next."""

    def check(self, job: TrainingJob, ranks: Ranks) -> None:
        """InputError, before training begins, where they could not look at such a network. Not collective."""

    def observe(self, trainer: Trainable, step: int, ranks: Ranks, go_on: GoOn) -> Mapping[str, Any]:
        """What is to be logged after `step` steps, by the first process. Collective.

        One that a signal cuts short is made when the run goes on.
        """


@dataclass(frozen=True, kw_only=True)
class Routine:
    """How a run is kept, watched and ended; nothing of it changes what is learned."""

    checkpoint_every: int = 500
    keep: int = KEPT
    """Newest checkpoints that are kept."""
    keep_every: int | None = None
    """Checkpoints of steps that this divides are kept for ever."""
    log_every: int = 50
    hours: float | None = None
    """Training time, over all starts, after which the run is saved and left."""
    workers: int | None = None
    """Threads that decode images; None: as many as there are cores."""
    observations: Sequence[Observation] = ()

    def when(self) -> dict[str, Any]:
        """What decides after which steps processes do something together."""
        looks = [[observation.event, observation.every] for observation in self.observations]
        return {"checkpoint_every": self.checkpoint_every, "keep_every": self.keep_every, "observations": looks}


def train(
    job: TrainingJob,
    folder: Path,
    *,
    routine: Routine | None = None,
    ranks: Ranks | None = None,
    parallel: Parallel | None = None,
    overwrite: bool = False,
) -> TrainingResult | None:
    """Train to the end, from the newest checkpoint if there is one; a finished run is left as it is.

    The same job gives the same weights, bit for bit on a CPU, however often it was interrupted. Several processes
    need `ranks` and `parallel` (`adm_bench.ranks.joined_ranks`, `adm_bench.parallel.parallel_for`). None where the time
    was up before the last step. `InterruptedWorkError` after a signal, with everything saved.
    """
    ranks, routine = ranks or Ranks(device=job.device), routine or Routine()
    run = TrainingRun(folder, routine.keep, routine.keep_every)
    with ExitStack() as stack:
        with ranks.agreeing():
            job.check()
            for observation in routine.observations:
                observation.check(job, ranks)
            plan = job.plan()
        shared = {**plan, "when": routine.when()}
        firsts = ranks.gather_plain(shared)[0]
        with ranks.agreeing():
            require_same(shared, firsts)
        with ranks.agreeing():
            if ranks.is_first and (overwrite or not run.checkpoints.list()):
                job.check_start()  # before anything is written
            if ranks.is_first:
                stack.enter_context(run.opened(plan, overwrite=overwrite))
        with ranks.agreeing():
            run.require_seen()
        with enough_memory(job.device, WITH_LESS_MEMORY):
            return _Training(run, job, routine, ranks, parallel or Alone()).run_to_end()


class _Training:
    """One start of a run."""

    def __init__(self, run: TrainingRun, job: TrainingJob, routine: Routine, ranks: Ranks, parallel: Parallel) -> None:
        self.run, self.job, self.routine, self.ranks, self.parallel = run, job, routine, ranks, parallel
        self.config = job.config.training
        self.header = WeightsHeader(kind=job.trainer, config=to_mapping(job.config))
        self.reached = Reached()

    def run_to_end(self) -> TrainingResult | None:
        """See `train`."""
        # As the first process sees it, who has just changed the folder: a network's file system may tell others late.
        if self.ranks.any(self.ranks.is_first and self.run.is_finished()):
            progress.say(f"{self.run.folder}: already trained; nothing to do")
            return TrainingResult(**read_json(self.run.result))
        with self.ranks.agreeing():
            batches = self._batches()
        trainer = self._trainer()
        with self.ranks.agreeing():
            newest = self.run.checkpoints.newest() if self.ranks.is_first else None
        step = self.ranks.highest(newest.step if newest else 0)
        if step:
            with self.ranks.agreeing():
                self._take_up(trainer, newest, step)
        elif self.job.start_from is not None:  # collective
            self.reached.step = begin_from(trainer, self.job.start_from, self.job.config)
            self.reached.first_step = self.reached.step
            progress.say(f"{self.run.folder}: going on from step {self.reached.step} of {self.job.start_from}")
        with self.ranks.agreeing():
            if self.ranks.is_first:
                self.run.started(self.reached.step, self.ranks.size)
        room = self.run.checkpoints.room
        if self.config.warmup_steps >= self.config.steps:
            progress.say(
                f"note: training.warmup_steps is {self.config.warmup_steps}, and the run has {self.config.steps} steps"
            )
        if self.config.compile:
            progress.say("note: the network is compiled first, which may take minutes; signals wait for it")
        with TrainingLog(self.run.folder, self.reached.step, writes=self.ranks.is_first, room=room) as log:
            is_done = self._take_steps(trainer, batches, log)
        return self._result(trainer) if is_done else None

    def _result(self, trainer: Trainable) -> TrainingResult:
        weights, reached = trainer.weights(), self.reached
        images = reached.step * self.config.batch_size
        result = TrainingResult(
            steps=reached.step,
            images=images,
            sec=reached.training_sec,
            images_per_sec=(images - reached.first_step * self.config.batch_size) / max(reached.training_sec, 1e-9),
            num_parameters=sum(tensor.numel() for tensor in weights.values()),
        )
        with self.ranks.agreeing():
            if self.ranks.is_first:
                self.run.save_weights(self.header, weights)
                write_json(self.run.result, to_mapping(result))
        return result

    def _batches(self) -> TrainingBatches:
        return TrainingBatches(
            self.job.dataset,
            batch_size=self.config.batch_size,
            seed=self.job.seed,
            crop=self.config.crop,
            flip=self.config.flip,
            rank=self.ranks.rank,
            size=self.ranks.size,
            workers=self.routine.workers,
            pinned=self.job.device.type == "cuda",
            passes_over=self.job.skip_bad > 0,
        )

    def _trainer(self) -> Trainable:
        torch.manual_seed(mix_seed(self.job.seed, Stream.WEIGHTS))
        factory = registry.load("trainers", self.job.trainer)
        trainer: Trainable = factory(self.job.config, self.job.device, self.job.precision, self.parallel)
        return trainer

    def _take_up(self, trainer: Trainable, newest: Checkpoint | None, step: int) -> None:
        """Go on from the checkpoint of a step, which the first process has chosen."""
        checkpoint = newest or self.run.checkpoints.of(step)
        with bad_input(checkpoint.folder):
            trainer.load_state(checkpoint.state())
        self.reached = Reached(step=step, **checkpoint.progress["reached"])
        progress.say(f"{self.run.folder}: going on from step {step}")

    def _take_steps(self, trainer: Trainable, batches: TrainingBatches, log: TrainingLog) -> bool:
        """Take the remaining steps; False where time was up before the last."""
        reached, steps = self.reached, self.config.steps
        totals = Totals(reached.unlogged)
        passed_over = PassedOver(self.job.skip_bad, reached.unreadable)
        gauge = Gauge(self.job.config, self.job.device, self.job.precision, self.ranks.size)
        title = f"train {self.run.folder.name}"
        with interruptible() as interruption, progress.stage(title, steps, "steps", done=reached.step) as advance:
            self._observe(trainer, log, interruption, resumed=True)
            if reached.step < steps and self.ranks.any(flag=self._is_late):
                return self._leave(TIME_IS_UP)
            last = time.perf_counter()
            for batch in batches.from_step(reached.step, steps):
                # Every step has random numbers of its own, so that no generator's state need be kept.
                seed_index = batch.step * self.ranks.size + self.ranks.rank
                torch.manual_seed(mix_seed(self.job.seed, Stream.TRAINING_STEPS, seed_index))
                report = trainer.train_step(batch)
                if report.skipped is None:
                    totals.add(report.means)
                sec = time.perf_counter() - last
                reached.step, reached.training_sec = batch.step + 1, reached.training_sec + sec
                gauge.add(self.config.batch_size, sec)
                self._note_skip(report, log)
                self._log(report, totals, gauge, log)
                advance(
                    1, step_note(report, gauge.images_per_sec, gauge.note), sec
                )  # what lies between is none of its pace
                reached.unlogged = dict(totals.totals)
                wish = self._agreed_wish(interruption, passed_over, batches.passed_over, log)
                if wish or self._is_due:
                    self._save(trainer, log)
                if wish and reached.step < steps:
                    return self._leave(wish)
                self._observe(trainer, log, interruption)
                last = time.perf_counter()
        return True

    @property
    def _is_due(self) -> bool:
        """Whether a checkpoint belongs here: what is kept for ever is made too, whatever lies between others."""
        intervals = (self.routine.checkpoint_every, self.routine.keep_every or self.config.steps, self.config.steps)
        return any(self.reached.step % interval == 0 for interval in intervals)

    def _wish(self, interruption: Interruption) -> int:
        """Why this process would end now: a signal's number, that time is up, or 0."""
        return interruption.signal_number or (TIME_IS_UP if self._is_late else 0)

    def _agreed_wish(
        self, interruption: Interruption, passed_over: PassedOver, found: Mapping[int, str], log: TrainingLog
    ) -> int:
        """Why any process would end now; images that one of them has passed over are noted before. Collective."""
        word = self.ranks.highest(UNREADABLE if passed_over.news(found) else self._wish(interruption))
        if word != UNREADABLE:
            return word
        unreadable = passed_over.join(found, self.ranks)
        self.reached.unreadable = sorted(passed_over.indices)
        log.write("unreadable", self.reached.step - 1, {"images": unreadable, "number": len(passed_over.indices)})
        return self.ranks.highest(self._wish(interruption))

    @property
    def _is_late(self) -> bool:
        """Whether the hours are over that the run may take."""
        hours = self.routine.hours
        return hours is not None and self.reached.training_sec >= 3600 * hours

    def _leave(self, wish: int) -> bool:
        """End before the last step, with everything saved; False where time is up."""
        step, folder = self.reached.step, self.run.folder
        if wish != TIME_IS_UP:
            progress.say(f"{folder}: stopped and saved after step {step}; repeat the command to go on")
            raise InterruptedWorkError(wish)
        progress.say(
            f"{folder}: {self.routine.hours:g} hours are over after step {step} of {self.config.steps}; repeat the "
            f"command with more to go on, or sample from {self.run.checkpoints.folder / step_name(step)}"
        )
        return False

    def _note_skip(self, report: StepReport, log: TrainingLog) -> None:
        """Log a step that taught nothing; InputError after too many of them in a row."""
        reached = self.reached
        reached.skipped_in_a_row = reached.skipped_in_a_row + 1 if report.skipped else 0
        if report.skipped is None:
            return
        log.write(
            "skipped", reached.step - 1, {"reason": report.skipped, "loss_scale": report.values.get("loss_scale")}
        )
        if reached.skipped_in_a_row >= self.config.most_skipped:
            good = self.run.checkpoints.list()
            start = f" --from {good[-1] / 'model.safetensors'}" if good else ""
            raise InputError(
                f"{self.run.folder}: {report.skipped} at step {reached.step - 1}, the last of "
                f"{reached.skipped_in_a_row} in a row (last good checkpoint: {good[-1].name if good else 'none'}); "
                f"begin another run{start} with a lower learning rate, or with precision bf16 or fp32"
            )

    def _log(self, report: StepReport, totals: Totals, gauge: Gauge, log: TrainingLog) -> None:
        step = self.reached.step
        if step % self.routine.log_every and step < self.config.steps:
            return
        values = {"images": step * self.config.batch_size, **totals.taken(), **report.values}
        log.write("training", step - 1, {**values, "sec": self.reached.training_sec, **gauge.values})

    def _save(self, trainer: Trainable, log: TrainingLog) -> None:
        state = trainer.state()
        with self.ranks.agreeing():
            log.flush()
            if self.ranks.is_first:
                kept = to_mapping(self.reached)
                step = kept.pop("step")
                about = {"images": step * self.config.batch_size, "ranks": self.ranks.size, "reached": kept}
                self.run.checkpoints.save(step, state, about, self.header)

    def _observe(
        self, trainer: Trainable, log: TrainingLog, interruption: Interruption, *, resumed: bool = False
    ) -> None:
        """Make the observations that are due; those of a checkpoint gone on from, if they were never made."""
        step = self.reached.step

        def go_on() -> None:
            wish = self.ranks.highest(interruption.signal_number)
            if wish:
                raise InterruptedWorkError(wish)

        for observation in self.routine.observations:
            due = step > 0 and (step % observation.every == 0 or step == self.config.steps)
            if resumed:  # only the first process has read the log
                due = self.ranks.any(self.ranks.is_first and due and not log.has(observation.event, step - 1))
            if not due:
                continue
            try:
                seen = observation.observe(trainer, step, self.ranks, go_on)
            except InterruptedWorkError as cut_short:
                self._save(trainer, log)
                self._leave(cut_short.signal_number)
            log.write(observation.event, step - 1, seen)
            progress.say(observation_note(observation.event, step, seen))
