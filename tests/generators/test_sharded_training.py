"""A trainer whose parameters are shards: FSDP2, in a process group of this process alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from generators.adm.trainer import ClassifierTrainer, DiffusionTrainer
from generators.protocol import TrainingBatch
from generators.training.alone import Alone


class Sharded(Alone):
    """`Parallel` over a mesh of one."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def wrap(self, network: nn.Module) -> nn.Module:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for stage in network.input_blocks:  # type: ignore[union-attr]
            fully_shard(stage, mesh=self.mesh)
        return fully_shard(network, mesh=self.mesh)

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        wrapped.set_requires_gradient_sync(False)  # type: ignore[operator]
        yield
        wrapped.set_requires_gradient_sync(True)  # type: ignore[operator]

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def copy(self, whole: Tensor, into: Tensor) -> None:
        assert isinstance(into, DTensor)
        into.copy_(distribute_tensor(whole, into.device_mesh, into.placements))


@pytest.fixture
def sharded() -> Iterator[Sharded]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Sharded(init_device_mesh("cpu", (1,)))
    finally:
        dist.destroy_process_group()


def test_shards_are_trained_averaged_kept_and_validated_as_whole_tensors_are(
    sharded: Sharded, make_trainer: Callable[..., DiffusionTrainer], training_batch: Callable[..., TrainingBatch]
) -> None:
    changes = {"training.microbatch_size": 8, "training.gradient_clip": 0.1, "training.further_ema_rates": [0.5]}
    whole, first, second = (
        make_trainer("classifier", parallel=parallel, **changes) for parallel in (Alone(), sharded, sharded)
    )
    assert isinstance(whole, ClassifierTrainer)
    whole.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  as shares are, bit for bit
    assert isinstance(first, ClassifierTrainer)
    assert all(isinstance(parameter, DTensor) for parameter in first.parameters.values())
    for trainer in (whole, first):
        trainer.train_step(training_batch(0))
    second.load_state(first.state())
    assert first.validate(training_batch(9)) == whole.validate(training_batch(9))
    reports = [trainer.train_step(training_batch(1)) for trainer in (whole, first, second)]
    assert reports[1] == reports[2]
    assert reports[1].means == reports[0].means
    expected = whole.state()
    for trainer in (first, second):
        found = trainer.state()
        for group, tensors in expected.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(found[group][name], tensor, msg=f"{group} {name}")
        assert all(weight.equal(found["ema_0.99"][name]) for name, weight in trainer.weights().items())
