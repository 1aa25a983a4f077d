"""How images reach the pixels of a feature network: one function for each protocol."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [B, C, H, W] to float32 [B, C, size, size], 0 to 255, as the graph of ADM's evaluator does.

    TensorFlow 1's ResizeBilinear with its defaults: destination pixel i reads source i * in / out (corners are not
    aligned, and a pixel is not its middle), between its two neighbours, without antialiasing in either direction.
    Columns first, then rows, in float32: on a CPU the same bits as TensorFlow's.
    """
    left, right, fraction = _neighbours(images.shape[3], size, images.device)
    columns = _between(images.index_select(3, left), images.index_select(3, right), fraction)
    upper, lower, fraction = _neighbours(images.shape[2], size, images.device)
    return _between(columns.index_select(2, upper), columns.index_select(2, lower), fraction[:, None])


def _neighbours(found: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Source indices before and after each of `wanted` places, and how far beyond the first it lies, 0 to 1."""
    scale = torch.tensor(found / wanted, dtype=torch.float32, device=device)
    places = torch.arange(wanted, dtype=torch.float32, device=device) * scale
    before = places.long()
    return before, (before + 1).clamp_max(found - 1), places - before


def _between(one: Tensor, other: Tensor, fraction: Tensor) -> Tensor:
    """`one + (other - one) * fraction` in that order of operations; torch.lerp has another."""
    one, other = one.float(), other.float()
    return one.add_(other.sub_(one).mul_(fraction))


def resize_like_clean_fid(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [B, C, H, W] to float32 [B, C, size, size], 0 to 255, as clean-fid does.

    Pillow's bicubic filter, which widens where it shrinks (antialiasing), on one channel at a time in float32, not
    rounded to levels, cut to 0 to 255 (Parmar, Zhang and Zhu 2022, "On Aliased Resizing and Surprising
    Subtleties in GAN Evaluation"). On the CPU, whatever the device.
    """
    channels = images.cpu().numpy().reshape(-1, *images.shape[2:]).astype(np.float32)
    resized = [Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in channels]
    stacked = np.stack([np.asarray(each) for each in resized]).clip(0, 255)
    return torch.from_numpy(stacked).reshape(*images.shape[:2], size, size).to(images.device)


def resize_like_edm2(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [B, C, H, W] to float32 [B, C, size, size], about 0 to 255, as EDM2 does before DINOv2.

    PyTorch's bicubic filter with antialiasing, neither rounded nor cut: it overshoots a little at edges.
    """
    return F.interpolate(images.float(), (size, size), mode="bicubic", align_corners=False, antialias=True)
