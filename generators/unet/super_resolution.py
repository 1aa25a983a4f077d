"""The super-resolution U-Net (Dhariwal & Nichol 2021, section 3 and Table 13, after Saharia et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.unet.config import SuperResolutionConfig
from generators.unet.unet import UNet


def enlarge(images: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) to (B, C, height, width) by bilinear interpolation between pixel centres, as the network sees it."""
    return F.interpolate(images, (height, width), mode="bilinear")


class SuperResolutionUNet(UNet):
    """A U-Net that sees, beside the noisy image, the same image at a lower resolution."""

    config: SuperResolutionConfig

    def __init__(self, config: SuperResolutionConfig) -> None:
        super().__init__(config)

    def forward(
        self, x: Tensor, timesteps: Tensor, labels: Tensor | None = None, *, low_resolution: Tensor | None = None
    ) -> Tensor:
        """As `UNet.forward`, with images (B, in_channels, h, w) in [-1, 1] of the lower resolution.

        ValueError where they are missing, or are not of the batch and channels of `x`.
        """
        if low_resolution is None:
            raise ValueError("low-resolution images are missing: the network enlarges them")
        if low_resolution.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"low resolution is {tuple(low_resolution.shape)}; expected {x.shape[0]} with {x.shape[1]} channels"
            )
        beside = enlarge(low_resolution, *x.shape[-2:]).to(x.dtype)
        return super().forward(torch.cat([x, beside], dim=1), timesteps, labels)
