"""Metrics beside the programs that people use: seconds of each, taken in turn in one process, and their ratio.

`make bench` prints the ratios, of the clock's seconds and of the processor's. The latter leave out the time that other
programs had the processor, and are all there is with one thread (OMP_NUM_THREADS=1). The features are drawn to look
like pooled Inception features: 2048 of them, not negative, of squared norm about 500, in clusters.
"""

from collections.abc import Callable
from time import perf_counter, process_time

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol, PrPrecision
from metrics.features.torchvision_import import import_torchvision
from metrics.frechet import frechet_distance
from metrics.manifold_metrics import PRECISION, RECALL
from metrics.statistics import FeatureSet, Moments

DIM = 2048
ROUNDS = 2


def features(seed: int, n: int) -> NDArray[np.float32]:
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    base = 0.125 + 0.75 * world.random(DIM) ** 3
    centres = 0.5 * world.normal(size=(24, DIM)) * (world.random((24, DIM)) < 0.25)
    load = 0.0625 * world.normal(size=(16, DIM))
    rows = base + centres[rng.integers(0, 24, n)] + rng.normal(size=(n, 16)) @ load
    return np.maximum(rows + 0.125 * rng.normal(size=(n, DIM)), 0).astype(np.float32)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    start = perf_counter(), process_time()
    call()
    return perf_counter() - start[0], process_time() - start[1]


def compare(
    title: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Time both in turn and print the ratio of the best times."""
    rounds = [(seconds(theirs), seconds(ours)) for _ in range(ROUNDS)]
    said = []
    for place, kind in enumerate(("clock", "processor")):
        other, own = (min(times[place] for times in side) for side in zip(*rounds, strict=True))
        benchmark.extra_info[f"ratio_{kind}"] = other / own
        said.append(f"{other / own:.1f}x by the {kind} ({other:.2f} s against {own:.2f} s)")
    with capsys.disabled():
        print(f"\n{title}, {torch.get_num_threads()} thread(s): {'; '.join(said)}")
    benchmark.pedantic(ours, rounds=1)


@pytest.mark.parametrize(("n", "other_n"), [(5000, 6000), (1000, 900), (1000, 5000)], ids=["full", "deficient", "one"])
def bench_frechet_distance(
    n: int, other_n: int, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside scipy.linalg.sqrtm of the product, as guided-diffusion's evaluator calls it."""
    arguments = []
    for seed, size in ((1, n), (2, other_n)):
        moments = Moments.empty(DIM)
        moments.update(features(seed, size))
        arguments += [moments.mean, moments.covariance()]
    title = f"Fréchet distance, {DIM} dimensions, {n} and {other_n} images, beside sqrtm"
    compare(
        title,
        lambda: frechet_distance(*arguments),
        lambda: scipy.linalg.sqrtm(arguments[1].dot(arguments[3])),
        benchmark,
        capsys,
    )


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def bench_precision_recall(
    precision: PrPrecision, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside torch-fidelity with its defaults; ours finds density, coverage and nearest neighbours on the way."""
    import_torchvision()
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, reference = features(1, 10_000), features(2, 10_000)
    protocol = EvaluationProtocol(name="bench", version=1, pr_precision=precision)

    def ours() -> tuple[float, float]:
        sets = FeatureSet(pool_rows=samples), FeatureSet(pool_rows=reference)
        comparison = Comparison(samples=sets[0], reference=sets[1], protocol=protocol)
        return PRECISION.compute(comparison), RECALL.compute(comparison)

    def theirs() -> object:
        return prc_features_to_metric(torch.from_numpy(samples), torch.from_numpy(reference), verbose=False)

    title = f"precision and recall, 10,000 x 10,000 x {DIM}, {precision}, beside torch-fidelity"
    compare(title, ours, theirs, benchmark, capsys)
