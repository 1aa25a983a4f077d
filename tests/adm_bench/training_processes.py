"""What the processes of test_parallel.py do: `torchrun ... training_processes.py SCENARIO FOLDER`."""

import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adm_bench.errors import AlreadySaidError
from adm_bench.parallel import parallel_for
from adm_bench.ranks import Ranks, joined_ranks
from generators.adm.presets import PRESETS
from generators.adm.trainer import ClassifierTrainer
from generators.diffusion.losses import training_losses
from generators.diffusion.process import Diffusion, DiffusionConfig
from generators.protocol import Parallel, TrainingBatch
from generators.training.loss_scale import START
from generators.unet.config import UNetConfig
from generators.unet.unet import UNet

CONFIG = UNetConfig(
    image_size=8, channels=64, num_res_blocks=1, attention_resolutions=(4,), head_channels=64, num_classes=3
)
BATCH = 4
STEPS = 20
MORE_STEPS = 2
MOMENTS = ("exp_avg", "exp_avg_sq")


class Training:
    """AdamW on the real network, with an average, on whatever processes there are."""

    def __init__(self, parallel: Parallel, seed: int = 0, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.parallel = parallel
        self.device = device
        self.network = UNet(CONFIG)
        for parameter in self.network.parameters():  # no layer at its zero start
            torch.nn.init.normal_(parameter, std=0.05)
        self.network.to(device)
        self.wrapped = parallel.wrap(self.network)
        self.parameters = dict(self.network.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1e-3, weight_decay=0.01, fused=True)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.diffusion = Diffusion(DiffusionConfig(), device=torch.device(device))

    def loss(self, step: int, part: int, parts: int) -> Tensor:
        """Mean over a part of this process's share of a batch."""
        generator = torch.Generator().manual_seed(step)
        images, noise = torch.randn(2, BATCH, 3, 8, 8, generator=generator).clamp(-1, 1).to(self.device)
        steps = torch.randint(1000, (BATCH,), generator=generator).to(self.device)
        labels = torch.randint(3, (BATCH,), generator=generator).to(self.device)
        count = BATCH // self.parallel.size // parts
        first = self.parallel.rank * BATCH // self.parallel.size + part * count
        mine = slice(first, first + count)

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            return self.wrapped(x, timesteps, labels[mine])

        losses = training_losses(self.diffusion, denoise, images[mine], steps[mine], noise[mine])
        return losses["loss"].mean()

    def backward(self, step: int, parts: int = 1) -> float:
        """Gradients of a batch, from nothing; the mean loss of all processes."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(1, device=self.device)
        for part in range(parts):
            last = part == parts - 1
            with nullcontext() if last else self.parallel.accumulating(self.wrapped):
                loss = self.loss(step, part, parts) / parts
                loss.backward()
            total += loss.detach()
        return self.parallel.gather(total).mean().item()

    def gradients(self) -> dict[str, Tensor]:
        return {name: self.parallel.whole(p.grad).clone() for name, p in self.parameters.items()}

    def step(self, step: int) -> tuple[float, float]:
        """The loss, and the norm of all gradients."""
        loss = self.backward(step)
        norm = self.parallel.whole(torch.nn.utils.get_total_norm([p.grad for p in self.parameters.values()]))
        self.optimizer.step()
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 0.1)
        return loss, norm.item()

    def output(self, weights: dict[str, Tensor]) -> Tensor:
        """Of the network with other weights."""
        x = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(99))
        arguments = (x, torch.arange(BATCH) * 100, torch.arange(BATCH) % 3)
        with torch.no_grad():
            return torch.func.functional_call(self.network, weights, arguments)

    def state(self) -> dict[str, Tensor]:
        groups = {"model": {name: p.detach() for name, p in self.parameters.items()}, "average": self.average}
        for moment in MOMENTS:
            groups[moment] = {name: self.optimizer.state[p][moment] for name, p in self.parameters.items()}
        whole = {f"{g}/{name}": self.parallel.whole(t) for g, group in groups.items() for name, t in group.items()}
        return {name: tensor.clone() for name, tensor in whole.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            moments = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(STEPS), device=self.device), **moments}
            for group, into in (("model", parameter), ("average", self.average[name]), *moments.items()):
                self.parallel.copy(state[f"{group}/{name}"], into)


def skips_an_overflow(parallel: Parallel, device: str = "cpu") -> bool:
    """Whether gradients that overflow on one process halve the loss scale, and change nothing else, on all."""
    torch.manual_seed(0)
    trainer = ClassifierTrainer(PRESETS["digits8_classifier"].config, torch.device(device), "fp16", parallel)
    mine = range(BATCH * parallel.rank, BATCH * (parallel.rank + 1))
    images = torch.stack([torch.full((3, 8, 8), 30 * index, dtype=torch.uint8) for index in mine])
    batch = TrainingBatch(step=0, images=images, labels=torch.tensor(mine), seeds=mine)
    before = {(group, name): t.clone() for group, tensors in trainer.state().items() for name, t in tensors.items()}
    terms = trainer.terms

    def overflowing(*inputs: Any) -> dict[str, Tensor]:
        found = terms(*inputs)
        found["loss"].register_hook(lambda gradient: gradient * torch.inf)
        return found

    if parallel.rank == 0:
        trainer.terms = overflowing  # type: ignore[method-assign]
    skipped = trainer.train_step(batch)
    after = {(group, name): tensor for group, tensors in trainer.state().items() for name, tensor in tensors.items()}
    changed = [key for key, tensor in before.items() if not torch.equal(after[key], tensor)]
    trainer.terms = terms  # type: ignore[method-assign]
    following = trainer.train_step(batch)
    held = (
        changed == [("counters", "loss_scale")]
        and (skipped.skipped or "").startswith("the norm of the gradients is ")
        and following.skipped is None
        and [each.values["loss_scale"] for each in (skipped, following)] == [START, START / 2]
    )
    return bool(parallel.gather(torch.tensor([held], device=device).int()).all())


def record(training: Training) -> dict[str, Tensor]:
    """Gradients in one go and in two parts, twenty steps, and the state they lead to."""
    found = {}
    for title, parts in (("gradient", 1), ("accumulated", 2)):
        training.backward(0, parts)
        found |= {f"{title}/{name}": gradient for name, gradient in training.gradients().items()}
    training.network.recompute_activations = True
    training.backward(0)
    training.network.recompute_activations = False
    found |= {f"recomputed/{name}": gradient for name, gradient in training.gradients().items()}
    losses, norms = zip(*(training.step(step) for step in range(STEPS)), strict=True)
    found |= {"losses": torch.tensor(losses), "norms": torch.tensor(norms)}
    return found | {f"state/{name}": tensor for name, tensor in training.state().items()}


def more(training: Training) -> Tensor:
    """Losses of the steps that follow."""
    return torch.tensor([training.step(STEPS + step)[0] for step in range(MORE_STEPS)])


def train(ranks: Ranks, folder: Path) -> None:
    """Train in both forms, with the state put away and taken up in between."""
    for sharding in ("none", "full"):
        parallel = parallel_for(ranks, sharding)
        training = Training(parallel)
        found = record(training)
        found["more"] = more(training)
        resumed = Training(parallel, seed=1)
        resumed.load({name.removeprefix("state/"): tensor for name, tensor in found.items()})
        found["resumed"] = more(resumed)
        alone = load_file(folder / "alone.safetensors")
        resumed.load(alone)
        found |= {f"kept/{name}": tensor for name, tensor in resumed.state().items()}
        found["from_alone"] = more(resumed)
        found["skips_an_overflow"] = torch.tensor(skips_an_overflow(parallel))
        mine = torch.arange(3)[:, None] + 10 * ranks.rank
        found |= {"gathered": parallel.gather(mine), "gathered_bool": parallel.gather(mine > 5)}
        if ranks.is_first:
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / f"{sharding}.safetensors")


def die(ranks: Ranks, folder: Path) -> None:
    """While others train, the last process is killed, or fails on its own."""
    training = Training(parallel_for(ranks, "none"))
    for step in range(1000):
        training.step(step)
        if step == 2 and ranks.rank == ranks.size - 1:
            (folder / "began").write_text(str(time.time()))
            if folder.name == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the disk is gone")


SCENARIOS = {"train": train, "die": die}

if __name__ == "__main__":
    try:
        with joined_ranks() as joined:
            SCENARIOS[sys.argv[1]](joined, Path(sys.argv[2]))
    except AlreadySaidError as said:
        sys.exit(said.exit_status)
