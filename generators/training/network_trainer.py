"""One step of training a network: loss, gradients, optimizer, weight averages; by one process or by many."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from generators.levels import from_uint8
from generators.protocol import Mean, Parallel, StepReport, TrainingBatch
from generators.training.alone import Alone
from generators.training.average import WeightAverage
from generators.training.config import TrainingConfig
from generators.training.loss_scale import LossScale
from generators.unet.encoder import Encoder
from generators.unet.precision import TYPES, memory_format

ALONE = Alone()
MOMENTS = ("exp_avg", "exp_avg_sq")
COUNTERS = ("optimizer_steps", "loss_scale", "steps_since_overflow")
LOSS = "loss"
GRAD_NORM = "grad_norm"


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """The learning rate used at a step, counted from 0."""
    rate = config.learning_rate
    if config.warmup_steps:
        rate *= min(1.0, (step + 1) / config.warmup_steps)
    remaining = 1 - step / config.steps
    if config.annealing == "linear":
        rate *= remaining
    elif config.annealing == "cosine":
        rate *= 0.5 - 0.5 * math.cos(math.pi * remaining)
    return rate


class NetworkTrainer(ABC):
    """AdamW on one network with averaged copies; what all kinds of trainer share.

    Subclasses give `losses`, `learn` and `means`. Weights, averages and optimizer state stay float32 in every
    precision. Parameters may be shards (torch's DTensors), and so is then what is kept beside them.
    """

    def __init__(
        self,
        network: Encoder,
        config: TrainingConfig,
        device: torch.device,
        precision: str,
        parallel: Parallel = ALONE,
    ) -> None:
        if precision not in TYPES:
            raise ValueError(f"precision is {precision!r}; expected one of {', '.join(TYPES)}")
        self.training = config
        self.device = device
        self.autocast_type = TYPES[precision]
        self.parallel = parallel
        layout = memory_format(device, precision)
        self.network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        self.network.recompute_activations = config.recompute_activations
        self.wrapped = parallel.wrap(self.network)
        self.called: nn.Module = torch.compile(self.wrapped) if config.compile else self.wrapped  # type: ignore[assignment]
        self.parameters = dict(self.network.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scale = LossScale(enabled=precision == "fp16")
        self.averages = [WeightAverage(self.parameters, rate, warmup=config.ema_warmup) for rate in config.ema_rates]

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Of images (B, 3, H, W) in [-1, 1]: what is minimised, (B,), and what is seen of it, each (B,).

        `loss` is among the latter, without gradients; the columns of all processes come back to `learn` and `means`.
        """

    @abstractmethod
    def learn(self, seen: Mapping[str, Tensor]) -> None:
        """Take in what was seen of the images of all processes, each (N,) float64 on the CPU, after a good step."""

    @abstractmethod
    def means(self, seen: Mapping[str, Tensor]) -> dict[str, Mean]:
        """What a log shows of that; the images of a skipped step included, finite or not."""

    def train_step(self, batch: TrainingBatch) -> StepReport:
        """See `generators.protocol.Trainable`.

        A step whose loss or gradients are not finite, on whatever process, changes nothing but the loss scale. The
        one time that an accelerator is waited for is before the optimizer, which it then runs beside the next batch.
        """
        rate = learning_rate_at(self.training, batch.step)
        self.optimizer.zero_grad(set_to_none=True)  # no sooner: memory given back to the system costs 5 % of tiny steps
        seen = self.accumulate(batch)
        norm = self.parallel.whole(get_total_norm(self.gradients().values())).to(self.device)  # shards' is on the CPU
        seen = self.gathered(seen | {GRAD_NORM: norm.expand(len(batch.images))})
        grad_norm = (seen.pop(GRAD_NORM) / self.scale.value).max().item()  # one number, unless somebody's is not finite
        skipped = None
        if not seen[LOSS].isfinite().all():
            skipped = f"the loss is {seen[LOSS].mean():g}"
        elif not math.isfinite(grad_norm):
            skipped = f"the norm of the gradients is {grad_norm:g}"
        values = {"learning_rate": rate, GRAD_NORM: grad_norm, "loss_scale": self.scale.value}
        if skipped is None:
            self._advance(batch.step, rate, grad_norm)
            self.learn(seen)
            self.scale.held()
        elif not math.isfinite(grad_norm):
            self.scale.overflowed()
        return StepReport(means=self.means(seen), values=values, skipped=skipped)

    def accumulate(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Add the gradients of the batch's mean loss times the loss scale; what is seen of its images, (B,) each."""
        parts = []
        for images, labels, seeds, last in self.microbatches(batch):
            with nullcontext() if last else self.parallel.accumulating(self.wrapped):
                with self.autocast():
                    minimised, seen = self.losses(images, labels, seeds)
                torch.autograd.backward(minimised.sum() * (self.scale.value / len(batch.images)))
            parts.append(seen)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def microbatches(self, batch: TrainingBatch) -> Iterator[tuple[Tensor, Tensor | None, Sequence[int], bool]]:
        """The batch in parts, on the device: images in [-1, 1], labels, seeds, and whether it is the last part."""
        size = self.training.microbatch_size or len(batch.images)
        for start in range(0, len(batch.images), size):
            part = slice(start, start + size)
            images = batch.images[part].to(self.device, non_blocking=True)
            labels = None if batch.labels is None else batch.labels[part].to(self.device, non_blocking=True)
            yield from_uint8(images), labels, batch.seeds[part], start + size >= len(batch.images)

    def autocast(self) -> torch.autocast:
        """The arithmetic of the forward pass."""
        enabled = self.autocast_type != torch.float32
        return torch.autocast(self.device.type, dtype=self.autocast_type if enabled else None, enabled=enabled)

    def gradients(self) -> dict[str, Tensor]:
        """The gradients that have been accumulated, by the names of their parameters."""
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def gathered(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns of all processes, in the order of ranks, float64 on the CPU; with one message. Collective."""
        table = self.parallel.gather(torch.stack([column.float() for column in seen.values()], dim=1))
        return dict(zip(seen, table.cpu().double().unbind(1), strict=True))

    def _advance(self, step: int, rate: float, norm: float) -> None:
        factor = 1 / self.scale.value
        if self.training.gradient_clip is not None:  # as torch.nn.utils.clip_grad_norm_, in the same pass
            factor *= min(1.0, self.training.gradient_clip / (norm + 1e-6))
        if factor != 1:
            torch._foreach_mul_(list(self.gradients().values()), factor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for average in self.averages:
            average.update(self.parameters, step)

    @contextmanager
    def as_sampled(self) -> Iterator[None]:
        """Inside, the network has the weights that `weights` gives, and is in evaluation mode, without gradients."""
        average = self.averages[0] if self.training.ema_rate else None
        self.wrapped.eval()
        if average is not None:
            average.swap(self.parameters)
        try:
            with torch.no_grad():
                yield
        finally:
            for module in self.network.modules():
                # FSDP2 keeps what it gathered last until a backward pass, and none comes here.
                reshard: Callable[[], None] | None = getattr(module, "reshard", None)
                if reshard is not None:
                    reshard()
            if average is not None:
                average.swap(self.parameters)
            self.wrapped.train()

    def _groups(self) -> dict[str, dict[str, Tensor]]:
        """The groups of tensors that are like the parameters."""
        groups: dict[str, dict[str, Tensor]] = {"model": dict(self.parameters)}
        groups |= {f"ema_{average.rate}": average.averaged for average in self.averages}
        for moment in MOMENTS:
            groups[moment] = {}
            for name, parameter in self.parameters.items():
                slot = self.optimizer.state.get(parameter)
                groups[moment][name] = slot[moment] if slot else torch.zeros_like(parameter)
        return groups

    def state(self) -> dict[str, dict[str, Tensor]]:
        """See `generators.protocol.Trainable`."""
        state = {
            group: {name: self.parallel.whole(tensor.detach()) for name, tensor in tensors.items()}
            for group, tensors in self._groups().items()
        }
        steps_taken = [slot["step"] for slot in self.optimizer.state.values()]
        counters = (steps_taken[0] if steps_taken else 0, self.scale.value, self.scale.good_steps)
        state["counters"] = {name: torch.tensor(float(value)) for name, value in zip(COUNTERS, counters, strict=True)}
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See `generators.protocol.Trainable`; groups of other names are left unread."""
        groups = self._groups()
        for group, tensors in groups.items():
            _require_shapes(group, state, {name: tensor.shape for name, tensor in tensors.items()})
        _require_shapes("counters", state, dict.fromkeys(COUNTERS, torch.Size()))
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                self.parallel.copy(state[group][name], tensor)
        steps_taken, scale, good_steps = (state["counters"][name].item() for name in COUNTERS)
        for name, parameter in self.parameters.items():
            slot = {"step": torch.tensor(float(steps_taken), device=self.device)}
            self.optimizer.state[parameter] = slot | {moment: groups[moment][name] for moment in MOMENTS}
        if self.scale.enabled:
            self.scale.value, self.scale.good_steps = float(scale), int(good_steps)

    def weights(self) -> dict[str, Tensor]:
        """The weights averaged at `ema_rate`, or the raw ones where that is 0."""
        weights = self.averages[0].averaged if self.training.ema_rate else self.parameters
        return {name: self.parallel.whole(tensor.detach()) for name, tensor in weights.items()}


def _require_shapes(group: str, state: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, torch.Size]) -> None:
    if group not in state:
        raise ValueError(f"the state has no group '{group}', which this network needs; it has {', '.join(state)}")
    found = {name: tensor.shape for name, tensor in state[group].items()}
    if found != expected:
        differing = min(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ValueError(f"group '{group}' has other tensors than this network; first: {differing}")
