"""Inception features at 256 x 256 on the CPU, beside torch-fidelity's own loop.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_inception.py --benchmark-only

Both take the same batch of 32 in turn, in one process, with the same random weights and as many threads as PyTorch
has here, and are to give the same features. A ratio is torch-fidelity's time over ours, best over best and in brackets
median over median: of time elapsed, and of CPU time, which other programs on the machine disturb less.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from metrics.features.inception import InceptionFeatures
from metrics.features.inception_network import InceptionNetwork
from metrics.features.torchvision_import import import_torchvision

import_torchvision()
from torch_fidelity import FeatureExtractorInceptionV3  # noqa: E402  it imports torchvision

CPU = torch.device("cpu")
BATCH, SIZE, ROUNDS = 32, 256, 4
LAYERS = ["2048", "logits_unbiased"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights at which signals neither vanish nor explode: He's, and norms that have seen them."""
    torch.manual_seed(0)
    network = InceptionNetwork()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def bench_features_beside_torch_fidelity(
    weights: Path, images: Tensor, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = InceptionFeatures.load(CPU, weights)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", LAYERS, feature_extractor_weights_path=str(weights))
    clocks = {"elapsed": time.perf_counter, "of CPU": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {"ours": [], "theirs": []} for clock in clocks}

    def timed(name: str, run: Callable[[], Tensor]) -> Tensor:
        start = {clock: read() for clock, read in clocks.items()}
        pool = run()
        for clock, read in clocks.items():
            seconds[clock][name].append(read() - start[clock])
        return pool

    @torch.inference_mode()
    def other() -> Tensor:
        return timed("theirs", lambda: theirs(images)[0])

    def one() -> Tensor:
        return timed("ours", lambda: ours(images).pool)

    pool = one()
    difference = torch.linalg.norm(pool - other()) / torch.linalg.norm(pool)
    assert difference < 5e-5
    for taken in seconds.values():
        taken["ours"].clear()
        taken["theirs"].clear()
    benchmark.pedantic(one, setup=lambda: (other(), None)[1], rounds=ROUNDS)
    lines = [f"features differ by {difference:.0e}"]
    for clock, taken in seconds.items():
        best, median = ([reduce(taken[name]) for name in ("ours", "theirs")] for reduce in (min, statistics.median))
        ratio, of_medians = best[1] / best[0], median[1] / median[0]
        benchmark.extra_info |= {f"ratio, seconds {clock}": ratio, f"ratio of medians, seconds {clock}": of_medians}
        rates = " and ".join(f"{BATCH / each:.1f}" for each in best)
        lines.append(f"seconds {clock}: {rates} images/s, ratio {ratio:.2f} ({of_medians:.2f})")
    with capsys.disabled():
        print(f"\nInception features at {SIZE} px, {torch.get_num_threads()} threads, ours and torch-fidelity's:")
        print("\n".join(lines))
