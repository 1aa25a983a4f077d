"""ADM as a generator: trained weights, a sampler, and perhaps a classifier that guides it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from generators.adm.config import AdmConfig, GuideConfig, SamplingConfig
from generators.configuration import from_mapping
from generators.diffusion.guidance import classifier_guidance
from generators.diffusion.noise import SeededNoise
from generators.diffusion.process import Diffusion, Spacing
from generators.diffusion.samplers import Guidance, SamplerStep, ddim_step, ddpm_step, sample
from generators.levels import to_uint8
from generators.protocol import Ingredients, idle
from generators.unet.checkpoint import load_weights, read_header
from generators.unet.classifier import Classifier
from generators.unet.unet import UNet

C = TypeVar("C")


class Adm:
    """Samples a trained ADM; "ADM-G" where a classifier guides it."""

    Options: ClassVar[type[SamplingConfig]] = SamplingConfig

    def __init__(
        self,
        config: AdmConfig,
        options: SamplingConfig,
        network: UNet,
        classifier: Classifier | None,
        device: torch.device,
    ) -> None:
        self.options = options
        self.network = network
        self.classifier = classifier
        self.device = device
        self.image_size = config.model.image_size
        self.num_classes = config.model.num_classes
        if classifier is not None and self.num_classes is None:
            self.num_classes = classifier.config.num_classes
        self.diffusion = respaced(config, options, device)
        self.network_evaluations = len(self.diffusion)

    @classmethod
    def build(cls, options: SamplingConfig, ingredients: Ingredients) -> "Adm":
        """Load the weights, and the classifier's; ValueError where the two do not belong together."""
        if ingredients.weights is None:
            raise ValueError("generator 'adm' needs trained weights; train some, or name their file or run")
        config = read_config(ingredients.weights, "adm", AdmConfig)
        guide = None if options.classifier is None else read_config(options.classifier, "classifier", GuideConfig)
        cls.check(options, config, guide)
        classifier = None
        if options.classifier is not None and guide is not None:
            classifier = load_network(Classifier(guide.model), options.classifier, ingredients.device)
        network = load_network(UNet(config.model), ingredients.weights, ingredients.device)
        return cls(config, options, network, classifier, ingredients.device)

    @staticmethod
    def check(options: SamplingConfig, config: object, guide: object | None) -> None:
        """ValueError where networks of these configurations cannot sample so: told before anything is trained."""
        if not isinstance(config, AdmConfig) or not isinstance(guide, GuideConfig | None):
            message = "weights are to be an adm's, and classifier a classifier's; they are not"
            raise ValueError(message)  # noqa: TRY004  what a user wrote
        respaced(config, options, torch.device("cpu"))
        if guide is not None:
            check_guide(config, guide, options.classifier)

    def sample(self, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = idle) -> Tensor:
        """See `generators.protocol.Generator`."""
        if self.num_classes is not None and labels is None:
            raise ValueError(f"labels are missing: this model samples {self.num_classes} classes")
        noise = SeededNoise(seeds, (3, self.image_size, self.image_size), self.device)
        with torch.inference_mode():
            images = sample(
                self._sampler_step(),
                self.diffusion,
                partial(self._denoise, labels=labels),
                noise,
                guidance=self._guidance(labels),
                clip=self.options.clip,
                evaluated=evaluated,
            )
            if not images.isfinite().all():
                raise FloatingPointError("the images are not finite; check the weights, and lower the guidance scale")
            return to_uint8(images, self.options.rounding)

    def evaluate_once(self) -> None:
        """See `generators.protocol.Generator`."""
        labels = None if self.num_classes is None else torch.zeros(1, dtype=torch.int64)
        noise = SeededNoise([0], (3, self.image_size, self.image_size), self.device)
        with torch.inference_mode():
            denoiser = partial(self._denoise, labels=labels)
            self._sampler_step()(self.diffusion, denoiser, noise(), 1, noise, guidance=self._guidance(labels))

    def _sampler_step(self) -> SamplerStep:
        return partial(ddim_step, eta=self.options.eta) if self.options.sampler == "ddim" else ddpm_step

    def _guidance(self, labels: Tensor | None) -> Guidance | None:
        if self.classifier is None or labels is None:
            return None
        return classifier_guidance(self.classifier, labels.to(self.device), self.options.guidance_scale)

    def _denoise(self, x: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        if self.network.config.num_classes is None or labels is None:
            labels = None
        output: Tensor = self.network(x, timesteps, None if labels is None else labels.to(self.device))
        return output


def respaced(config: AdmConfig, options: SamplingConfig, device: torch.device) -> Diffusion:
    """The process on the steps that sampling takes."""
    spacing: Spacing = "ddim" if options.sampler == "ddim" else "even"
    return Diffusion(config.diffusion, num_steps=options.sampling_steps, spacing=spacing, device=device)


def read_config(path: Path, kind: str, config_type: type[C]) -> C:
    """The configuration inside a weights file; ValueError where the file is of another kind."""
    header = read_header(path)
    if header.kind != kind:
        raise ValueError(f"{path}: weights of kind '{header.kind}', expected '{kind}'")
    return from_mapping(config_type, header.config, f"{path}: ")


N = TypeVar("N", bound=nn.Module)


def load_network(network: N, path: Path, device: torch.device) -> N:
    """A network with a file's weights, for inference: evaluation mode, no gradients of parameters."""
    load_weights(network, path)
    return network.to(device).eval().requires_grad_(requires_grad=False)


def check_guide(config: AdmConfig, guide: GuideConfig, path: Path | None) -> None:
    """A classifier guides only a model of its image size, classes and noise; ValueError otherwise."""
    pairs = {
        "image_size": (guide.model.image_size, config.model.image_size),
        "num_classes": (guide.model.num_classes, config.model.num_classes or guide.model.num_classes),
        "schedule": (guide.diffusion.schedule, config.diffusion.schedule),
        "num_timesteps": (guide.diffusion.num_timesteps, config.diffusion.num_timesteps),
        "rescale_timesteps": (guide.diffusion.rescale_timesteps, config.diffusion.rescale_timesteps),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise ValueError(f"{path}: the classifier's {name} is {found}, the model's is {expected}")
