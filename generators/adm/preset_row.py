"""What a preset is: a named configuration and, where it is somebody's released model, what is known of it."""

from dataclasses import dataclass

from generators.adm.config import NetworkConfig, kind_of


@dataclass(frozen=True, kw_only=True)
class PresetSampling:
    """The sampling settings of a model's published figures; None where they leave a setting open."""

    sampling_steps: int | None = None
    """Steps of the respaced process."""
    guidance_scale: float | None = None
    """Factor on the gradient of `classifier`."""
    classifier: str | None = None
    """Name of the preset of the classifier that guides it."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named starting point for one kind of training, or the configuration of released weights."""

    summary: str
    config: NetworkConfig
    sampling: PresetSampling | None = None
    published_fid: float | None = None
    """FID that its authors report, where they do."""
    published: str = ""
    """What that figure was measured on: model, guidance, steps and the table it stands in."""
    tensors_sha256: str | None = None
    """`tensors_digest` of the released file; None where nothing was released."""

    @property
    def trainer(self) -> str:
        """The trainer that it is for, which is also the kind of its weights."""
        return kind_of(self.config)
