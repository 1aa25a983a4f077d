"""What a computation costs in multiplications, counted and not timed."""

from collections.abc import Callable
from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class ComputeCost:
    """Multiply-accumulates, and floating point operations at two each."""

    macs: int
    flops: int


def count_cost(call: Callable[[], object]) -> ComputeCost:
    """Count one `call()`, backward pass included if it makes one.

    Convolutions, linear layers, matrix products and attention count; elementwise work, a few per cent of a
    network, does not. The call may run on the meta device, where nothing is computed or stored. Attention is
    counted as its two matrix products, which torch's counter sees on every device, and not as one fused
    kernel, which it misses on the CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    flops = counter.get_total_flops()
    return ComputeCost(macs=flops // 2, flops=flops)
