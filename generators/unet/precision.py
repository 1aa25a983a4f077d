"""Networks whose convolutions compute in a half-precision type, as ADM samples (its `use_fp16`)."""

from typing import Literal, TypeVar

import torch
from torch import nn

from generators.unet.encoder import Encoder

Precision = Literal["fp32", "bf16", "fp16"]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
N = TypeVar("N", bound=Encoder)


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """The layout in which networks are fastest: channels last, but not for float32 on accelerators.

    What weights have, feature maps take on.
    """
    last = device.type == "cpu" or precision != "fp32"
    return torch.channels_last if last else torch.contiguous_format


def set_precision(network: N, precision: Precision) -> N:
    """Convert the convolutions of all stages, once; norms, embeddings and the head stay float32. For inference.

    Training keeps float32 weights and computes under `torch.autocast` instead.
    """
    for name in ("input_blocks", "middle_block", "output_blocks"):
        for module in getattr(network, name, nn.Identity()).modules():
            if isinstance(module, CONVOLUTIONS):
                module.to(TYPES[precision])
    return network
