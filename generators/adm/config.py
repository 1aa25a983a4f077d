"""What decides an ADM, an upsampler, or the classifier that guides one, from its first weight to its last."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from generators.diffusion.process import DiffusionConfig
from generators.diffusion.samplers import GuidancePoint
from generators.levels import Rounding
from generators.training.config import TrainingConfig
from generators.unet.config import ClassifierConfig, EncoderConfig, SuperResolutionConfig, UNetConfig
from generators.unet.precision import Precision

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
        _require_outputs(self.model, self.diffusion)


@dataclass(frozen=True, kw_only=True)
class UpsamplerConfig:
    """A diffusion model of high-resolution images that sees them at a low resolution."""

    model: SuperResolutionConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """As for plain models."""
        _require_rgb(self.model)
        _require_outputs(self.model, self.diffusion)


@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """A classifier of noisy images: network, the diffusion whose noise it knows, and training."""

    model: ClassifierConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """Images are RGB."""
        _require_rgb(self.model)


NetworkConfig = AdmConfig | UpsamplerConfig | GuideConfig
KINDS: dict[str, type[NetworkConfig]] = {"adm": AdmConfig, "upsampler": UpsamplerConfig, "classifier": GuideConfig}
"""What trainers and weights files are called, and the configuration of each."""


def kind_of(config: NetworkConfig) -> str:
    """The name in `KINDS` of a configuration's type."""
    return next(kind for kind, config_type in KINDS.items() if type(config) is config_type)


def _require_rgb(model: EncoderConfig) -> None:
    if model.in_channels != 3:
        raise ValueError(f"model.in_channels is {model.in_channels}; images have 3")


def _require_outputs(model: UNetConfig, diffusion: DiffusionConfig) -> None:
    expected = 6 if diffusion.learns_variance else 3
    if model.out_channels != expected:
        raise ValueError(
            f"model.out_channels is {model.out_channels}, but diffusion.variance '{diffusion.variance}' "
            f"needs {expected}"
        )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How images are drawn from any diffusion model."""

    preset: str | None = None
    """Configuration of weights that do not carry their own (`.pt` files); it also gives `sampling_steps`."""
    sampler: SamplerName = "ddpm"
    """`ddpm`: ancestral sampling; `ddim`: DDIM, deterministic at eta 0."""
    sampling_steps: int | None = None
    """Steps of the respaced process; none takes the preset's number, or every step the model was trained with."""
    section_steps: tuple[int, ...] = ()
    """Steps in each of equal sections of the process, earliest first (Table 15), instead of `sampling_steps`."""
    timesteps: tuple[int, ...] = ()
    """The very steps to take, instead of a number of them."""
    eta: float = 0.0
    """Share of ancestral noise in DDIM."""
    noise_temperature: float = 1.0
    """Factor on the noise that steps add; below 1 is reduced temperature (Figure 11)."""
    epsilon_temperature: float = 1.0
    """Divisor of the predicted noise, the other way to reduce temperature."""
    clip: bool = True
    """Clamp the guessed image to [-1, 1] at every step."""
    rounding: Rounding = "truncate"
    """To 8 bits: `truncate` as the reference does, or to the `nearest` level."""
    precision: Precision = "fp32"
    """Arithmetic of the convolutions; norms, embeddings and the output head are float32 always."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes at the start, faster steps on a GPU."""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; expected 0 to 1")
        if self.eta > 0 and self.sampler != "ddim":
            raise ValueError(f"eta {self.eta} belongs to sampler 'ddim', not '{self.sampler}'")
        if self.noise_temperature < 0 or self.epsilon_temperature <= 0:
            raise ValueError(
                f"noise_temperature is {self.noise_temperature} and epsilon_temperature {self.epsilon_temperature}; "
                "expected 0 or more, and more than 0"
            )
        if self.noise_temperature != 1 and self.sampler == "ddim" and self.eta == 0:
            raise ValueError(
                f"noise_temperature {self.noise_temperature} is without effect: ddim without eta adds none"
            )
        chosen = [name for name in ("sampling_steps", "section_steps", "timesteps") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} both say which steps to take; give one of them")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(SamplerConfig):
    """How images are drawn from an ADM, which a classifier may guide."""

    classifier: Path | None = None
    """Weights of the classifier that guides sampling."""
    classifier_preset: str | None = None
    """Configuration of classifier weights that do not carry their own."""
    guidance_scale: float | None = None
    """Factor on the classifier's gradient; none takes the preset's where a classifier guides, and 0 elsewhere."""
    guidance_at: GuidancePoint = "x_t"
    """Where ancestral sampling takes the gradient: at `x_t` as released, or at the posterior `mean`."""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        super().__post_init__()
        if self.guidance_scale is not None and self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; expected 0 or more")
        if self.guidance_scale and not self.guided:
            raise ValueError(f"guidance_scale {self.guidance_scale} needs a classifier, and none is given")
        if self.guided and self.guidance_scale == 0:
            raise ValueError("a classifier is given but guidance_scale is 0; give a scale above 0")
        if self.guidance_at == "mean" and (self.sampler != "ddpm" or not self.guided):
            raise ValueError("guidance_at 'mean' belongs to sampler 'ddpm' with a classifier")

    @property
    def guided(self) -> bool:
        """Whether a classifier guides."""
        return self.classifier is not None or self.classifier_preset is not None
