"""Training of ADM, of upsamplers and of the classifiers that guide (Dhariwal & Nichol 2021, appendices C and H)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.adm.config import AdmConfig, GuideConfig, NetworkConfig, UpsamplerConfig
from generators.diffusion.losses import training_losses
from generators.diffusion.process import Denoiser, Diffusion
from generators.diffusion.timesteps import timestep_sampler
from generators.training.network_trainer import NetworkTrainer
from generators.unet.classifier import Classifier
from generators.unet.encoder import Encoder
from generators.unet.super_resolution import SuperResolutionUNet
from generators.unet.unet import UNet

TIMESTEP_SAMPLER = "timestep_sampler"


class DiffusionTrainer(NetworkTrainer):
    """Trains a network on the timesteps of a process, drawn uniformly or by their losses."""

    def __init__(self, network: Encoder, config: NetworkConfig, device: torch.device, precision: str) -> None:
        super().__init__(network, config.training, device, precision)
        self.diffusion = Diffusion(config.diffusion, device=device)
        self.timesteps = timestep_sampler(config.diffusion.timestep_sampler, len(self.diffusion))

    def denoising_losses(self, denoiser: Denoiser, images: Tensor) -> dict[str, Tensor]:
        """The configured loss and its parts, weighted so that each estimates its mean over all timesteps."""
        drawn, weights = self.timesteps.draw(len(images))
        noise = torch.randn(images.shape).to(self.device)
        losses = training_losses(self.diffusion, denoiser, images, drawn.to(self.device), noise)
        self.timesteps.update(drawn, losses["loss"].detach().cpu())
        weights = weights.to(self.device)
        return {name: (value * weights).mean() for name, value in losses.items()}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """See `generators.protocol.Trainable`; with what the timestep sampler has learned, if anything."""
        learned = self.timesteps.state()
        return super().state() | ({TIMESTEP_SAMPLER: learned} if learned else {})

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See `generators.protocol.Trainable`."""
        super().load_state(state)
        if TIMESTEP_SAMPLER in state:
            self.timesteps.load_state(state[TIMESTEP_SAMPLER])


class AdmTrainer(DiffusionTrainer):
    """Trains a denoising U-Net."""

    Config: ClassVar[type[AdmConfig]] = AdmConfig

    def __init__(self, config: AdmConfig, device: torch.device, precision: str) -> None:
        super().__init__(UNet(config.model), config, device, precision)
        self.conditional = config.model.num_classes is not None

    def losses(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Mean over the batch of the configured loss and its parts."""
        condition = labels if self.conditional else None

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self.compiled(x, timesteps, condition)
            return output

        return self.denoising_losses(denoise, images)


class UpsamplerTrainer(DiffusionTrainer):
    """Trains a super-resolution U-Net on images and their reductions by area averages."""

    Config: ClassVar[type[UpsamplerConfig]] = UpsamplerConfig

    def __init__(self, config: UpsamplerConfig, device: torch.device, precision: str) -> None:
        super().__init__(SuperResolutionUNet(config.model), config, device, precision)
        self.conditional = config.model.num_classes is not None
        self.low_resolution = config.model.low_resolution

    def losses(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Mean over the batch of the configured loss and its parts."""
        condition = labels if self.conditional else None
        small = F.adaptive_avg_pool2d(images, self.low_resolution)

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self.compiled(x, timesteps, condition, low_resolution=small)
            return output

        return self.denoising_losses(denoise, images)


class ClassifierTrainer(DiffusionTrainer):
    """Trains a classifier of noisy images."""

    Config: ClassVar[type[GuideConfig]] = GuideConfig

    def __init__(self, config: GuideConfig, device: torch.device, precision: str) -> None:
        super().__init__(Classifier(config.model), config, device, precision)

    def losses(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy and accuracy, over the batch; the loss is weighted as the timesteps are drawn."""
        if labels is None:
            raise ValueError("a classifier needs labelled images, and these have no labels")
        drawn, weights = self.timesteps.draw(len(images))
        steps = drawn.to(self.device)
        noisy = self.diffusion.add_noise(images, steps, torch.randn(images.shape).to(self.device))
        logits = self.compiled(noisy, self.diffusion.network_timesteps[steps]).float()
        entropies = F.cross_entropy(logits, labels, reduction="none")
        self.timesteps.update(drawn, entropies.detach().cpu())
        correct = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": (entropies * weights.to(self.device)).mean(), "accuracy": correct}
