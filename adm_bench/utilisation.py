"""How well a device is used while it trains: images a second, memory, and the share of its peak."""

from collections import deque

import torch

from adm_bench.compute import network_cost
from generators.adm.config import NetworkConfig
from generators.unet.precision import TYPES
from metrics.throughput import measure_matmul_flops

RECENT_STEPS = 50
GIB = 2**30


class Gauge:
    """What the last steps say of speed; on CUDA of memory and utilisation too.

    Utilisation is the FLOPs of convolutions and matrix products of training (recomputed ones not counted) over what
    one large matrix product of the same type reached on this device when training began.
    """

    def __init__(self, config: NetworkConfig, device: torch.device, precision: str, num_devices: int) -> None:
        self.device = device
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._flops_per_image, self._peak = 0, 0.0
        if device.type == "cuda":
            self._flops_per_image = network_cost(config).training_flops_per_image
            self._peak = num_devices * measure_matmul_flops(device, TYPES[precision])
            torch.cuda.reset_peak_memory_stats(device)  # the product's matrices are no part of training

    def add(self, num_images: int, sec: float) -> None:
        """One more step, of all processes together."""
        self._recent.append((num_images, sec))

    @property
    def images_per_sec(self) -> float:
        """Of all processes, over the last steps."""
        images = sum(num_images for num_images, _ in self._recent)
        return images / max(sum(sec for _, sec in self._recent), 1e-9)

    @property
    def values(self) -> dict[str, float]:
        """For a log."""
        values = {"images_per_sec": self.images_per_sec}
        if self.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
            values["utilisation"] = self.images_per_sec * self._flops_per_image / self._peak
        return values

    @property
    def note(self) -> str:
        """For a person; empty where there is nothing but speed."""
        values = self.values
        if "utilisation" not in values:
            return ""
        return f"{values['memory_gib']:.1f} GiB, {values['utilisation']:.0%} of peak"
