"""What every training run decides, beside its network."""

from dataclasses import dataclass
from typing import Literal

Annealing = Literal["none", "linear", "cosine"]
Crop = Literal["center", "random"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Batch, length, optimizer and weight average of a training run."""

    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    annealing: Annealing = "none"
    """Course of the learning rate: none, or towards 0 after the last step, linearly or as half a cosine."""
    warmup_steps: int = 0
    weight_decay: float = 0.0
    ema_rate: float = 0.9999
    """Weight that the running average keeps at each step; 0 samples the raw weights."""
    further_ema_rates: tuple[float, ...] = ()
    """Rates of more averages, which are kept beside the one that is sampled."""
    ema_warmup: bool = True
    """Average young weights faster: rate min(ema_rate, (1 + step) / (10 + step))."""
    microbatch_size: int | None = None
    """Images of a process that go through the network at a time; gradients are the same means. None: all at once."""
    gradient_clip: float | None = None
    """Largest norm of all gradients together; larger ones are scaled down to it."""
    most_skipped: int = 10
    """Steps in a row whose loss or gradients are not finite, after which training stops."""
    crop: Crop = "center"
    """ADM's central square, or a random one of 0.8 to 1 of the short side, as its classifiers were trained on."""
    flip: bool = False
    """Mirror half of the images, left to right."""
    recompute_activations: bool = False
    """Save memory by computing activations twice; the result is the same."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps on a GPU."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        for name in ("steps", "batch_size", "most_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        for name in ("warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected more than 0")
        if not 0 <= self.ema_rate < 1:
            raise ValueError(f"ema_rate is {self.ema_rate}; expected 0 <= ema_rate < 1")
        if not all(0 < rate < 1 for rate in self.further_ema_rates):
            raise ValueError(f"further_ema_rates are {self.further_ema_rates}; expected each above 0 and below 1")
        if len({self.ema_rate, *self.further_ema_rates}) <= len(self.further_ema_rates):
            raise ValueError(
                f"further_ema_rates are {self.further_ema_rates}, beside ema_rate {self.ema_rate}; "
                "expected each rate once"
            )
        if self.microbatch_size is not None and self.microbatch_size < 1:
            raise ValueError(f"microbatch_size is {self.microbatch_size}; expected 1 or more, or none")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip is {self.gradient_clip}; expected more than 0, or none")

    @property
    def ema_rates(self) -> tuple[float, ...]:
        """The rates of all averages that are kept: none where only the raw weights are."""
        return (*((self.ema_rate,) if self.ema_rate else ()), *self.further_ema_rates)
