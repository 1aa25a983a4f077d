"""What decides an ADM, or the classifier that guides it, from its first weight to its last."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from generators.diffusion.process import DiffusionConfig
from generators.levels import Rounding
from generators.training.config import TrainingConfig
from generators.unet.config import ClassifierConfig, EncoderConfig, UNetConfig

SamplerName = Literal["ddpm", "ddim"]


@dataclass(frozen=True, kw_only=True)
class AdmConfig:
    """A diffusion model: network, diffusion and training."""

    model: UNetConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """The network's output must have the channels that the diffusion reads."""
        _require_rgb(self.model)
        expected = 6 if self.diffusion.learns_variance else 3
        if self.model.out_channels != expected:
            raise ValueError(
                f"model.out_channels is {self.model.out_channels}, but diffusion.variance "
                f"'{self.diffusion.variance}' needs {expected}"
            )


def _require_rgb(model: EncoderConfig) -> None:
    if model.in_channels != 3:
        raise ValueError(f"model.in_channels is {model.in_channels}; images have 3")


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """A classifier of noisy images: network, the diffusion whose noise it knows, and training."""

    model: ClassifierConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """Images are RGB."""
        _require_rgb(self.model)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are drawn from an ADM."""

    sampler: SamplerName = "ddpm"
    """`ddpm`: ancestral sampling; `ddim`: DDIM, deterministic at eta 0."""
    sampling_steps: int | None = None
    """Steps of the respaced process; none takes every step the model was trained with."""
    eta: float = 0.0
    """Share of ancestral noise in DDIM."""
    classifier: Path | None = None
    """Weights of the classifier that guides sampling."""
    guidance_scale: float = 0.0
    """Factor on the classifier's gradient; above 0 it needs a classifier."""
    clip: bool = True
    """Clamp the guessed image to [-1, 1] at every step."""
    rounding: Rounding = "truncate"
    """To 8 bits: `truncate` as the reference does, or to the `nearest` level."""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if self.guidance_scale < 0 or not 0 <= self.eta <= 1:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale} and eta {self.eta}; expected 0 or more, and 0 to 1"
            )
        if self.guidance_scale > 0 and self.classifier is None:
            raise ValueError(f"guidance_scale {self.guidance_scale} needs a classifier, and none is given")
        if self.classifier is not None and self.guidance_scale == 0:
            raise ValueError("a classifier is given but guidance_scale is 0; give a scale above 0")
        if self.eta > 0 and self.sampler != "ddim":
            raise ValueError(f"eta {self.eta} belongs to sampler 'ddim', not '{self.sampler}'")
