"""Many processes that train one network: replicas of it (DDP), or shares of it (FSDP2)."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from adm_bench.errors import InputError
from adm_bench.ranks import Ranks
from generators.protocol import Parallel
from generators.training.alone import Alone
from generators.unet.layers import AttentionBlock, ResBlock

Sharding = Literal["none", "full"]


def parallel_for(ranks: Ranks, sharding: Sharding) -> Parallel:
    """How these processes train together; one that is alone is sharded only if asked, in a group of one."""
    if sharding == "full":
        return Sharded(ranks)
    return Alone() if ranks.size == 1 else Replicated(ranks)


class Joined:
    """What both forms share: a place among processes of equal batches."""

    def __init__(self, ranks: Ranks) -> None:
        self.rank = ranks.rank
        self.size = ranks.size
        self.device = ranks.device
        self._ranks = ranks

    def gather(self, values: Tensor) -> Tensor:
        """See `Parallel`."""
        return self._ranks.gather(values)


class Replicated(Joined):
    """`generators.protocol.Parallel` of processes that each hold the whole network (DistributedDataParallel).

    Gradients travel while the backward pass still runs. What the first process has in its network is everyone's.
    """

    def wrap(self, network: nn.Module) -> nn.Module:
        """See `Parallel`; a forward pass of what comes back is collective where its gradients are."""
        _require_no_buffers(network)
        # Gradients of 1x1 convolutions come in strides that say the same in other numbers, and are copied.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=device_ids, gradient_as_bucket_view=True)

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        """See `Parallel`; the forward pass belongs inside too."""
        assert isinstance(wrapped, DistributedDataParallel)
        with wrapped.no_sync():
            yield

    def whole(self, tensor: Tensor) -> Tensor:
        """See `Parallel`."""
        return tensor

    def copy(self, whole: Tensor, into: Tensor) -> None:
        """See `Parallel`."""
        with torch.no_grad():
            into.copy_(whole)


class Sharded(Joined):
    """`generators.protocol.Parallel` of processes that each keep a share of every parameter (FSDP2).

    The shares are float32, and so is what travels. A residual or attention block is whole only while it works.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks)
        if ranks.device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise InputError(f"sharding on CPUs needs a newer torch than {torch.__version__}; GPUs do not")

    def wrap(self, network: nn.Module) -> nn.Module:
        """See `Parallel`; every forward pass of what comes back, which is the network itself, is collective."""
        _require_no_buffers(network)
        # Nothing else can be cut, in torch 2.13 at least.
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for parameter in network.parameters():  # the first process's, as DDP has it
            dist.broadcast(parameter.detach(), src=0)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for module in list(network.modules()):
            if isinstance(module, ResBlock | AttentionBlock):
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network

    def accumulating(self, wrapped: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002  the protocol's
        """See `Parallel`; gradients are averaged every time all the same, for their sum is the same and stays sharded.

        FSDP's own way keeps the whole network's gradients on every process until the last backward pass.
        """
        return nullcontext()

    @torch.no_grad()
    def whole(self, tensor: Tensor) -> Tensor:
        """See `Parallel`; on the CPU, because a device that needs shares may have no room for all that is whole."""
        return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor

    @torch.no_grad()
    def copy(self, whole: Tensor, into: Tensor) -> None:
        """See `Parallel`; nothing travels, since every process has the whole."""
        if not isinstance(into, DTensor):
            into.copy_(whole)
            return
        if whole.shape != into.shape:
            raise ValueError(f"whole tensor is {tuple(whole.shape)}; expected {tuple(into.shape)}")
        (placement,) = into.placements
        assert isinstance(placement, Shard)
        shares = whole.chunk(self.size, placement.dim)  # as DTensor cuts: the last ones may be missing
        if self.rank < len(shares):
            into.to_local().copy_(shares[self.rank])


def _require_no_buffers(network: nn.Module) -> None:
    names = [name for name, _ in network.named_buffers()]
    if names:
        raise ValueError(f"the network has a buffer, {names[0]}; expected parameters alone, the rest would drift apart")
