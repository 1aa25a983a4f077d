"""ADM as a generator: trained weights, a sampler, and perhaps a classifier that guides it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from generators.adm.config import AdmConfig, GuideConfig, SamplingConfig
from generators.adm.loading import find_config, load_network, respaced, suggested_sampling, with_released_preset
from generators.adm.sampler import DiffusionSampler, ScheduledEmbedding
from generators.configuration import to_mapping
from generators.diffusion.encoding import encode
from generators.diffusion.guidance import classifier_guidance
from generators.diffusion.process import Diffusion
from generators.diffusion.samplers import Guidance
from generators.levels import from_uint8, to_uint8
from generators.protocol import Ingredients, idle
from generators.unet.classifier import Classifier
from generators.unet.unet import UNet


class ClassifierGuide:
    """The classifier of "ADM-G": its gradient is followed, so many times over."""

    def __init__(self, classifier: Classifier, diffusion: Diffusion, scale: float, *, compiled: bool) -> None:
        self.config = classifier.config
        self.scale = scale
        self.embedding = ScheduledEmbedding(classifier, diffusion)
        self.classify = torch.compile(classifier.classify) if compiled else classifier.classify

    def settings(self) -> dict[str, Any]:
        """What guides, and how much, as plain data."""
        return {"guidance_scale": self.scale, "classifier_model": to_mapping(self.config)}

    def towards(self, labels: Tensor) -> Guidance:
        """Guidance towards labels (B,), on the classifier's device."""
        return classifier_guidance(lambda x, steps: self.classify(x, self.embedding(steps)), labels, self.scale)


class Adm:
    """Samples a trained ADM; "ADM-G" where a classifier guides it."""

    Options: ClassVar[type[SamplingConfig]] = SamplingConfig

    def __init__(
        self, options: SamplingConfig, network: UNet, diffusion: Diffusion, guide: ClassifierGuide | None
    ) -> None:
        self.options = options
        self.guide = guide
        self.sampler = DiffusionSampler(network, diffusion, options, options.guidance_at)
        self.device = diffusion.device
        self.image_size = network.config.image_size
        self.num_classes = network.config.num_classes
        if guide is not None and self.num_classes is None:
            self.num_classes = guide.config.num_classes
        self.network_evaluations = len(diffusion)

    @classmethod
    def build(cls, options: SamplingConfig, ingredients: Ingredients) -> "Adm":
        """Load the weights, and the classifier's; ValueError where the two do not belong together."""
        device = ingredients.device
        options = with_released_preset(options, ingredients.weights)
        config = find_config(AdmConfig, ingredients.weights, options.preset, device, option="--preset")
        guide_config = None
        if options.guided:
            guide_config = find_config(
                GuideConfig, options.classifier, options.classifier_preset, device, option="--classifier-preset"
            )
        cls.check(options, config, guide_config)
        diffusion = respaced(config.diffusion, options, device)
        guide = None
        if guide_config is not None:
            classifier = load_network(guide_config, options.classifier, device, options.precision)
            assert isinstance(classifier, Classifier)
            guide = ClassifierGuide(classifier, diffusion, guidance_scale(options), compiled=options.compile)
        network = load_network(config, ingredients.weights, device, options.precision)
        assert isinstance(network, UNet)
        return cls(options, network, diffusion, guide)

    @staticmethod
    def check(options: SamplingConfig, config: object, guide: object | None) -> None:
        """ValueError where networks of these configurations cannot sample so: told before anything is trained."""
        if not isinstance(config, AdmConfig) or not isinstance(guide, GuideConfig | None):
            message = "weights are to be an adm's, and classifier a classifier's; they are not"
            raise ValueError(message)  # noqa: TRY004  what a user wrote
        respaced(config.diffusion, options, torch.device("cpu"))
        if guide is not None:
            guidance_scale(options)
            check_guide(config, guide, options.classifier)

    def sample(self, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = idle) -> Tensor:
        """See `generators.protocol.Generator`."""
        with torch.inference_mode():
            denoiser = self.sampler.denoiser(self._checked(labels, len(seeds)))
            images = self.sampler.draw(seeds, denoiser, self._guidance(labels), evaluated=evaluated)
            return to_uint8(images, self.options.rounding)

    def encode(self, images: Tensor, labels: Tensor | None, evaluated: Callable[[], None] = idle) -> Tensor:
        """The latents (B, 3, H, W) from which `decode` makes uint8 images (B, 3, H, W) again (DDIM reversed)."""
        with torch.inference_mode():
            x0 = from_uint8(images.to(self.device))
            denoiser = self.sampler.denoiser(self._checked(labels, len(images)))
            return encode(self.sampler.diffusion, denoiser, x0, clip=self.options.clip, evaluated=evaluated)

    def decode(self, latents: Tensor, labels: Tensor | None, evaluated: Callable[[], None] = idle) -> Tensor:
        """uint8 images (B, 3, H, W) from latents of that shape, without guidance; ValueError unless DDIM, eta 0."""
        if self.options.sampler != "ddim" or self.options.eta:
            raise ValueError(f"sampler '{self.options.sampler}', eta {self.options.eta}: only ddim at eta 0 decodes")
        with torch.inference_mode():
            denoiser = self.sampler.denoiser(self._checked(labels, len(latents)))
            images = self.sampler.draw(range(len(latents)), denoiser, latent=latents, evaluated=evaluated)
            return to_uint8(images, self.options.rounding)

    def settings(self) -> dict[str, Any]:
        """See `generators.protocol.Described`."""
        return self.sampler.settings() | ({} if self.guide is None else self.guide.settings())

    def evaluate_once(self) -> None:
        """See `generators.protocol.Generator`."""
        labels = None if self.num_classes is None else torch.zeros(1, dtype=torch.int64)
        with torch.inference_mode():
            self.sampler.advance_once(self.sampler.denoiser(labels), self._guidance(labels))

    def _checked(self, labels: Tensor | None, num_images: int) -> Tensor | None:
        if self.num_classes is None:
            return None
        if labels is None:
            raise ValueError(f"labels are missing: this model samples {self.num_classes} classes")
        if labels.shape != (num_images,) or not ((labels >= 0) & (labels < self.num_classes)).all():
            raise ValueError(
                f"labels are {tuple(labels.shape)} up to {labels.max()}; expected one for each of {num_images} images, "
                f"0 to {self.num_classes - 1}"
            )
        return labels

    def _guidance(self, labels: Tensor | None) -> Guidance | None:
        return None if self.guide is None or labels is None else self.guide.towards(labels.to(self.device))


def guidance_scale(options: SamplingConfig) -> float:
    """The scale given, or the preset's; ValueError where neither is."""
    scale = options.guidance_scale or suggested_sampling(options).guidance_scale
    if scale is None:
        raise ValueError("a classifier is given but no guidance_scale; give a scale above 0")
    return scale


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
            where = "" if path is None else f"{path}: "
            raise ValueError(
                f"{where}the classifier's {name} is {found}, the model's is {expected}; "
                "guide with a classifier that was trained for this model"
            )
