"""Which steps a training batch is noised to, and what each then counts (Nichol & Dhariwal 2021, section 3.3)."""

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TimestepSamplerName = Literal["uniform", "loss-second-moment"]


class TimestepSampler(Protocol):
    """Draws the steps of training batches, and may learn from their losses where to look."""

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (B,) int64 and the weights (B,) float32 of their losses, from uniforms (B,) float64 in [0, 1).

        Each step depends on its own number alone. The weights make the expected weighted loss that of uniform steps.
        """

    def update(self, steps: Tensor, losses: Tensor) -> None:
        """Take in the unweighted losses (B,) of steps (B,); several processes hand in everybody's, in one order."""

    def state(self) -> dict[str, Tensor]:
        """All that later draws depend on, beside the generator."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on as the sampler whose state this is; ValueError where it is of another kind or length."""


class UniformTimesteps:
    """Every step alike."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler`."""
        return (self.num_steps * uniforms).long(), torch.ones(len(uniforms))

    def update(self, steps: Tensor, losses: Tensor) -> None:
        """See `TimestepSampler`; losses change nothing."""

    def state(self) -> dict[str, Tensor]:
        """See `TimestepSampler`; there is none."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TimestepSampler`."""
        _require_shapes(state, self.state())


class LossSecondMoment:
    """Steps as often as the root mean square of their last losses is large, once every step has `history` of them.

    Until then they are uniform; afterwards `uniform_share` of the draws still is.
    """

    def __init__(self, num_steps: int, history: int = 10, uniform_share: float = 0.001) -> None:
        if history < 1 or not 0 < uniform_share <= 1:
            raise ValueError(
                f"history is {history} and uniform_share {uniform_share}; expected 1 or more, and above 0 up to 1"
            )
        self.num_steps = num_steps
        self.uniform_share = uniform_share
        self._losses = np.zeros((num_steps, history))  # a ring a step: its oldest loss is the next replaced
        self._counts = np.zeros(num_steps, np.int64)

    def probabilities(self) -> NDArray[np.float64]:
        """How likely each step is drawn, (num_steps,)."""
        size = np.sqrt(np.mean(self._losses**2, axis=1))
        total = float(size.sum())
        if (self._counts < self._losses.shape[1]).any() or total == 0:
            return np.full(self.num_steps, 1 / self.num_steps)
        mixed: NDArray[np.float64] = (1 - self.uniform_share) * size / total + self.uniform_share / self.num_steps
        return mixed

    def draw(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler`; by the inverse of the cumulated probabilities."""
        probabilities = self.probabilities()
        cumulated = np.cumsum(probabilities)
        # Scaled by what they sum up to, and at most the last step, for sums are rounded.
        steps = np.searchsorted(cumulated, uniforms.numpy() * cumulated[-1], side="right").clip(max=self.num_steps - 1)
        weights = 1 / (self.num_steps * probabilities[steps])
        return torch.from_numpy(steps), torch.from_numpy(weights).float()

    def update(self, steps: Tensor, losses: Tensor) -> None:
        """See `TimestepSampler`.

        Losses that are not finite are left out: training itself reports them, and one would spoil ten rounds.
        """
        history = self._losses.shape[1]
        for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
            if np.isfinite(loss):
                self._losses[step, self._counts[step] % history] = loss
                self._counts[step] += 1

    def state(self) -> dict[str, Tensor]:
        """See `TimestepSampler`."""
        return {"losses": torch.from_numpy(self._losses.copy()), "counts": torch.from_numpy(self._counts.copy())}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `TimestepSampler`."""
        _require_shapes(state, self.state())
        self._losses[:] = state["losses"].cpu().numpy()
        self._counts[:] = state["counts"].cpu().numpy()


def _require_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the timestep sampler's state has {shapes[0] or 'nothing'}; expected {shapes[1] or 'nothing'}"
        )


def timestep_sampler(name: TimestepSamplerName, num_steps: int) -> TimestepSampler:
    """The named sampler of the steps of a process."""
    samplers: dict[TimestepSamplerName, type[UniformTimesteps] | type[LossSecondMoment]] = {
        "uniform": UniformTimesteps,
        "loss-second-moment": LossSecondMoment,
    }
    return samplers[name](num_steps)
