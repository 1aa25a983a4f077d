"""The vision transformer of DINOv2, over Meta's names of its weights.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision"; the blocks are those of Dosovitskiy
et al. 2021, each branch scaled by channel (Touvron et al. 2021, "Going deeper with Image Transformers"). The
defaults are ViT-L/14, 304 million parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PATCH_SIZE = 14
NORM_EPSILON = 1e-6
EXCESS = 0.1
"""What Meta's code adds to the number of patches before it divides by the number trained with.

The ratio decides not only how many positions come out but also where each of them reads, so that 16 of them lie
37 / 16.1 apart.
"""

EXACT_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Of attention: the first serves float32 on CPUs only; elsewhere products of matrices do, which know of no TF32 here.

The others of accelerators do not say what their products are.
"""


class Patches(nn.Module):
    """A linear map of each 14 x 14 patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, patches, width], row by row."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Attention of all tokens to all, in heads; queries, keys and values come out of one linear map."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] to the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(EXACT_KERNELS):
            heads = F.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return attended


class Perceptron(nn.Module):
    """Two linear maps with a GELU (the exact one) between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] to the same shape."""
        mapped: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mapped


class Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] to the same shape."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and perceptron, each after a norm, scaled, and added to what came in."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, num_heads)
        self.ls1 = Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = Perceptron(width)
        self.ls2 = Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] to the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        added: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return added


class DinoNetwork(nn.Module):
    """The whole network; `trained_grid` is the patches a side that its position embeddings are of."""

    def __init__(self, *, width: int = 1024, depth: int = 24, num_heads: int = 16, trained_grid: int = 37) -> None:
        super().__init__()
        self.trained_grid = trained_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + trained_grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        """Stands for patches hidden in training. It is in the file, and nothing reads it here."""
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised square images [B, 3, H, H], H a multiple of 14, to the class token after the norm, [B, width]."""
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions(images.shape[-1] // PATCH_SIZE)
        for block in self.blocks:
            x = block(x)
        token: Tensor = self.norm(x[:, 0])
        return token

    def positions(self, grid: int) -> Tensor:
        """Position embeddings [1, 1 + grid * grid, width], of the class token first.

        Other grids than the trained one are interpolated as Meta's hub code does: bicubic, without antialiasing, at
        the places that `EXCESS` decides.
        """
        if grid == self.trained_grid:
            return self.pos_embed
        ratio = (grid + EXCESS) / self.trained_grid
        trained = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, self.trained_grid, self.trained_grid)
        resized = F.interpolate(trained, scale_factor=(ratio, ratio), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
