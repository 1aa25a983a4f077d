"""Features for the embedded digits: a small classifier whose weights lie beside this file.

It stands in for the Inception network where none can be fetched, and has the same three outputs: pooled
features, a spatial layer cut and ordered as ADM cuts and orders `mixed_6/conv`, and logits without bias. Its
numbers compare with each other, never with Inception's. `scripts/train_digits_features.py` makes the weights.
"""

from hashlib import sha256
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.features.float32 import exact_float32
from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureBatch

WEIGHTS_PATH = Path(__file__).with_name("digits.safetensors")
NETWORK_SIZE = 16
SMALLEST_IMAGE = 8
SPATIAL_CHANNELS = 7
"""As many as ADM's sFID takes (guided-diffusion, evaluations/evaluator.py): 8 * 8 * 7 = 448 features here."""


def network_input(images: Tensor) -> Tensor:
    """Resize uint8 [B, 3, H, H] to float32 [B, 3, 16, 16] in [-1, 1]: bilinear, no antialiasing."""
    scaled = images.float() / 127.5 - 1
    size = (NETWORK_SIZE, NETWORK_SIZE)
    return F.interpolate(scaled, size=size, mode="bilinear", align_corners=False, antialias=False)


class DigitsNetwork(nn.Module):
    """Four convolutions and a bias-free linear layer, 130 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.spatial = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.middle = nn.Conv2d(64, 96, 3, padding=1, stride=2)
        self.top = nn.Conv2d(96, 64, 3, padding=1)
        self.classes = nn.Linear(64, 10, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pool [B, 64] >= 0, spatial [B, 64, 8, 8] >= 0 and logits [B, 10] of a `network_input`."""
        spatial = F.relu(self.spatial(F.relu(self.stem(images))))
        pool = F.relu(self.top(F.relu(self.middle(spatial)))).mean(dim=(2, 3))
        return pool, spatial, self.classes(pool)


class DigitsFeatures:
    """`metrics.protocol.Features` of the digit classifier: pool [B, 64], spatial [B, 448], logits [B, 10]."""

    name = "digits"
    weights_name = None
    protocol = EvaluationProtocol(name="digits", version=1)
    layers = frozenset(("pool", "spatial", "logits"))

    def __init__(self, network: DigitsNetwork, *, digest: str, device: torch.device) -> None:
        self.network = network.to(device).eval().requires_grad_(requires_grad=False)
        self.digest = digest
        self.device = device

    @classmethod
    def load(cls, device: torch.device, weights: Path | None = None) -> Self:
        """Load the packaged weights, and refuse others; a RuntimeError names what they lack or have too much."""
        if weights is not None:
            raise ValueError(f"features {cls.name} have weights of their own and were given {weights}; leave it away")
        packed = WEIGHTS_PATH.read_bytes()
        network = DigitsNetwork()
        network.load_state_dict(safetensors.torch.load(packed), strict=True)
        return cls(network, digest=sha256(packed).hexdigest(), device=device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> FeatureBatch:
        """Return features of square uint8 images [B, 3, H, H], H >= 8; anything else is a ValueError."""
        _require_square_rgb(images)
        with exact_float32():
            pool, spatial, logits = self.network(network_input(images.to(self.device)))
        # Row, column, channel: ADM flattens TensorFlow's NHWC layout.
        flat = spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return FeatureBatch(pool=pool, spatial=flat, logits=logits)


def _require_square_rgb(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise ValueError(f"found images of type {images.dtype}; expected torch.uint8 with values 0 to 255")
    if images.ndim != 4 or shape[1] != 3:
        raise ValueError(f"found images of shape {shape}; expected [batch, 3, height, width]")
    if shape[2] != shape[3] or shape[2] < SMALLEST_IMAGE:
        raise ValueError(
            f"found images of {shape[2]} x {shape[3]} pixels; the digits features take square ones of "
            f"at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE}: crop them first"
        )
