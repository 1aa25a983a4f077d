"""Features of the Inception network, the ones that the field reports its numbers with, under two protocols.

`inception` follows OpenAI's evaluator for ADM (guided-diffusion, evaluations/evaluator.py); `clean` resizes as
clean-fid does. The network and its weights are the same, and the numbers of the two do not compare.
"""

from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from metrics.features.float32 import exact_float32
from metrics.features.images import require_rgb
from metrics.features.inception_network import INPUT_SIZE, InceptionNetwork
from metrics.features.resize import resize_like_clean_fid, resize_like_tensorflow
from metrics.features.weights import with_weights
from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureBatch

SPATIAL_CHANNELS = 7
"""Of the 1x1 branch of `Mixed_6d`, TensorFlow's `mixed_6/conv`: 17 * 17 * 7 = 2023 features."""

ON_CPU = (2, 16)
ELSEWHERE = (64, 64)
"""Images that pass the stem, and the blocks, at a time: a CPU's caches hold the maps of a few."""


class InceptionFeatures:
    """`metrics.protocol.Features` of protocol `adm`: pool [B, 2048], spatial [B, 2023], logits [B, 1008], float32.

    Images of any size and shape, resized without antialiasing as TensorFlow 1 does; (x - 128) / 128; no TF32.
    """

    name = "inception"
    protocol = EvaluationProtocol(name="adm", version=1, pr_precision="fp16")
    layers = frozenset(("pool", "spatial", "logits"))
    weights_name: ClassVar[str | None] = "inception"

    def __init__(self, network: InceptionNetwork, *, digest: str, device: torch.device) -> None:
        """Take a network with its weights, which is folded here."""
        self.device = device
        self.digest = digest
        network.eval().requires_grad_(requires_grad=False).fold()
        # What pays was measured on a CPU; elsewhere, in float32 without TF32, the layout is PyTorch's own.
        self._layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.network = network.to(device=device, memory_format=self._layout)  # type: ignore[call-overload]

    @classmethod
    def load(cls, device: torch.device, weights: Path | None = None) -> Self:
        """Load torch-fidelity's weights, `weights-inception-2015-12-05`; a ValueError says what is wrong with them."""
        network, digest = with_weights(
            InceptionNetwork, weights, features=cls.name, wanted="a file of the Inception network"
        )
        return cls(network, digest=digest, device=device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> FeatureBatch:
        """Return the features of uint8 images [B, 3, H, W]; anything else is a ValueError."""
        require_rgb(images)
        in_stem, in_blocks = ON_CPU if self.device.type == "cpu" else ELSEWHERE
        with exact_float32():
            parts = [self._features(part.to(self.device), in_stem) for part in torch.split(images, in_blocks)]
            pool, spatial = (torch.cat(rows) for rows in zip(*parts, strict=True))
            return FeatureBatch(pool=pool, spatial=spatial, logits=self.network.logits(pool))

    def _features(self, images: Tensor, in_stem: int) -> tuple[Tensor, Tensor]:
        """Pool [B, 2048] and spatial [B, 2023] features of a few images."""
        stems = [self.network.stem(self._network_input(part)) for part in torch.split(images, in_stem)]
        middle, pool = self.network.blocks(torch.cat(stems))
        # Row, column, channel: ADM flattens TensorFlow's NHWC layout.
        return pool, middle[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def _network_input(self, images: Tensor) -> Tensor:
        return self.resized(images).sub_(128).div_(128).contiguous(memory_format=self._layout)

    def resized(self, images: Tensor) -> Tensor:
        """Uint8 images [B, 3, H, W] as float32 [B, 3, 299, 299], 0 to 255, as the protocol has it."""
        return resize_like_tensorflow(images, INPUT_SIZE)


class CleanFeatures(InceptionFeatures):
    """`metrics.protocol.Features` of protocol `clean`: clean-fid's antialiased bicubic resize, the same network.

    clean-fid itself reports FID and KID, of the pool features. The spatial features and logits of images that were
    resized so come along, under the same name of the protocol: they compare with nobody else's numbers.
    """

    name = "clean"
    protocol = EvaluationProtocol(name="clean", version=1)

    def resized(self, images: Tensor) -> Tensor:
        """As in `InceptionFeatures`."""
        return resize_like_clean_fid(images, INPUT_SIZE)
