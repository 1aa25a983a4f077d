"""Training of ADM and of the classifiers that guide it (Dhariwal & Nichol 2021, appendices C and H)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.adm.config import AdmConfig, GuideConfig
from generators.diffusion.losses import training_losses
from generators.diffusion.process import Diffusion
from generators.training.network_trainer import NetworkTrainer
from generators.unet.classifier import Classifier
from generators.unet.unet import UNet


class AdmTrainer(NetworkTrainer):
    """Trains a denoising U-Net on uniformly drawn timesteps."""

    Config: ClassVar[type[AdmConfig]] = AdmConfig

    def __init__(self, config: AdmConfig, device: torch.device, precision: str) -> None:
        super().__init__(UNet(config.model), config.training, device, precision)
        self.conditional = config.model.num_classes is not None
        self.diffusion = Diffusion(config.diffusion, device=device)

    def losses(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Mean over the batch of the configured loss and its parts."""
        steps = torch.randint(len(self.diffusion), (len(images),)).to(self.device)
        noise = torch.randn(images.shape).to(self.device)
        condition = labels if self.conditional else None

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self.network(x, timesteps, condition)
            return output

        losses = training_losses(self.diffusion, denoise, images, steps, noise)
        return {name: value.mean() for name, value in losses.items()}


class ClassifierTrainer(NetworkTrainer):
    """Trains a classifier on images noised to uniformly drawn timesteps."""

    Config: ClassVar[type[GuideConfig]] = GuideConfig

    def __init__(self, config: GuideConfig, device: torch.device, precision: str) -> None:
        super().__init__(Classifier(config.model), config.training, device, precision)
        self.diffusion = Diffusion(config.diffusion, device=device)

    def losses(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy and accuracy, over the batch."""
        if labels is None:
            raise ValueError("a classifier needs labelled images, and these have no labels")
        steps = torch.randint(len(self.diffusion), (len(images),)).to(self.device)
        noisy = self.diffusion.add_noise(images, steps, torch.randn(images.shape).to(self.device))
        logits = self.network(noisy, self.diffusion.network_timesteps[steps]).float()
        correct = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": correct}
