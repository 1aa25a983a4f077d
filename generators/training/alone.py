"""Training by a single process."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Alone:
    """`generators.protocol.Parallel` of a process that has no others."""

    rank = 0
    size = 1

    def wrap(self, network: nn.Module) -> nn.Module:
        """See `Parallel`."""
        return network

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:  # noqa: ARG002  the protocol's
        """See `Parallel`."""
        yield

    def gather(self, values: Tensor) -> Tensor:
        """See `Parallel`."""
        return values

    def whole(self, tensor: Tensor) -> Tensor:
        """See `Parallel`."""
        return tensor

    def copy(self, whole: Tensor, into: Tensor) -> None:
        """See `Parallel`."""
        into.copy_(whole)
