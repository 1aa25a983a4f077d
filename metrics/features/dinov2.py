"""Features of DINOv2, for Fréchet distances that follow human judgement more closely than Inception's (FD-DINOv2).

Stein et al. 2023, "Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion
models", proposed them (dgm-eval); Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models" (EDM2), made them common.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from metrics.features.dinov2_network import PATCH_SIZE, DinoNetwork
from metrics.features.float32 import exact_float32
from metrics.features.images import require_rgb
from metrics.features.resize import resize_like_edm2
from metrics.features.weights import with_weights
from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureBatch

INPUT_SIZE = 16 * PATCH_SIZE
"""224 pixels a side."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels, in 0 to 1, as the network was trained with."""

ON_CPU, ELSEWHERE = 4, 64
"""Images that pass the network at a time, which bounds the memory of its activations."""


class DinoFeatures:
    """`metrics.protocol.Features` of protocol `dinov2`: the class token of ViT-L/14 after the last norm, [B, 1024].

    Images of any size and shape come to 224 x 224 as in EDM2: bicubic with antialiasing, by torch, on floats, neither
    rounded nor cut to 0 to 255. dgm-eval resizes by Pillow's filter of the same kind, which rounds to levels: its
    numbers are close, and other numbers. Float32 throughout, without TF32. No spatial layer, no logits.
    """

    name = "dinov2"
    protocol = EvaluationProtocol(name="dinov2", version=1)
    layers = frozenset(("pool",))
    weights_name = "dinov2"

    def __init__(self, network: DinoNetwork, *, digest: str, device: torch.device) -> None:
        """Take a network, of any width and depth, with its weights."""
        self.device = device
        self.digest = digest
        self.network = network.to(device).eval().requires_grad_(requires_grad=False)

    @classmethod
    def load(cls, device: torch.device, weights: Path | None = None) -> Self:
        """Load Meta's `dinov2_vitl14_pretrain.pth`, or the same as safetensors; a ValueError says what is wrong."""
        network, digest = with_weights(DinoNetwork, weights, features=cls.name, wanted="dinov2_vitl14_pretrain.pth")
        return cls(network, digest=digest, device=device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> FeatureBatch:
        """Return the features of uint8 images [B, 3, H, W]; anything else is a ValueError."""
        require_rgb(images)
        at_a_time = ON_CPU if self.device.type == "cpu" else ELSEWHERE
        with exact_float32():
            parts = [self.network(network_input(part.to(self.device))) for part in torch.split(images, at_a_time)]
        return FeatureBatch(pool=torch.cat(parts), spatial=None, logits=None)


def network_input(images: Tensor) -> Tensor:
    """Uint8 images [B, 3, H, W] as float32 [B, 3, 224, 224], with ImageNet's mean and deviation taken out."""
    mean, deviation = (images.new_tensor(each, dtype=torch.float32)[:, None, None] for each in (MEAN, DEVIATION))
    return (resize_like_edm2(images, INPUT_SIZE) / 255 - mean) / deviation
