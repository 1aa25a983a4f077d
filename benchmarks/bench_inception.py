"""Inception features at 256 x 256 on the CPU, beside torch-fidelity's own loop.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_inception.py --benchmark-only

Both take the same batch of 32 in turn, in one process, with the same random weights and as many threads as PyTorch
has here, and are to give the same features. A ratio is torch-fidelity's time over ours.
"""

import statistics
import time
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
BATCH, SIZE, ROUNDS = 32, 256, 5
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
    seconds: dict[str, list[float]] = {"ours": [], "torch-fidelity": []}

    def other() -> Tensor:
        start = time.perf_counter()
        with torch.inference_mode():
            pool: Tensor = theirs(images)[0]
        seconds["torch-fidelity"].append(time.perf_counter() - start)
        return pool

    def one() -> Tensor:
        start = time.perf_counter()
        pool = ours(images).pool
        seconds["ours"].append(time.perf_counter() - start)
        return pool

    difference = torch.linalg.norm(one() - other()) / torch.linalg.norm(one())
    assert difference < 5e-5
    seconds = {name: [] for name in seconds}
    benchmark.pedantic(one, setup=lambda: (other(), None)[1], rounds=ROUNDS)
    best = {name: min(taken) for name, taken in seconds.items()}
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratio, of_medians = (table["torch-fidelity"] / table["ours"] for table in (best, median))
    benchmark.extra_info |= {"ratio": ratio, "ratio_of_medians": of_medians, "images_per_sec": BATCH / best["ours"]}
    with capsys.disabled():
        print(
            f"\nInception features, {SIZE} px, batches of {BATCH}, {torch.get_num_threads()} threads: "
            f"{BATCH / best['ours']:.1f} images/s, torch-fidelity {BATCH / best['torch-fidelity']:.1f}: "
            f"ratio {ratio:.2f} ({of_medians:.2f}), features differ by {difference:.0e}"
        )
