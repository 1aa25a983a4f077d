"""torch-fidelity, on the same features, gives the same numbers."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metrics.comparison import Comparison
from metrics.evaluation_protocol import EvaluationProtocol
from metrics.frechet import FID
from metrics.inception_score import INCEPTION_SCORE, SHUFFLED_INCEPTION_SCORE
from metrics.kernel import KID_SUBSETS
from metrics.manifold_metrics import F_SCORE, PRECISION, RECALL
from metrics.protocol import Metric
from metrics.statistics import FeatureBatch, FeatureSet

PROTOCOL = EvaluationProtocol(name="test", version=1, inception_split_size=100, kid_subsets=7, kid_subset_size=150)
RNG = np.random.default_rng(0)
SAMPLES, REFERENCE = RNG.gamma(1.1, size=(400, 48)).astype(np.float32), RNG.gamma(1, size=(500, 48)).astype(np.float32)
LOGITS = (3 * RNG.normal(size=(400, 20))).astype(np.float32)


def ours(metric: Metric, protocol: EvaluationProtocol = PROTOCOL) -> float:
    samples, reference = FeatureSet(), FeatureSet()
    samples.update(FeatureBatch(pool=torch.from_numpy(SAMPLES), spatial=None, logits=torch.from_numpy(LOGITS)))
    reference.update(FeatureBatch(pool=torch.from_numpy(REFERENCE), spatial=None, logits=None))
    return metric.compute(Comparison(samples=samples, reference=reference, protocol=protocol))


def theirs(torch_fidelity: ModuleType, metric: str, *sets: NDArray[Any], **settings: Any) -> dict[str, float]:
    function = getattr(getattr(torch_fidelity, f"metric_{metric}"), f"{metric}_features_to_metric")
    found: dict[str, float] = function(*map(torch.from_numpy, sets), verbose=False, **settings)
    return found


def test_fid(torch_fidelity: ModuleType) -> None:
    module = torch_fidelity.metric_fid
    stats = [module.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (SAMPLES, REFERENCE)]
    expected = module.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert ours(FID) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", [INCEPTION_SCORE, SHUFFLED_INCEPTION_SCORE])
def test_inception_score_in_as_many_splits(torch_fidelity: ModuleType, metric: Metric) -> None:
    shuffle = metric is SHUFFLED_INCEPTION_SCORE
    found = torch_fidelity.metric_isc.isc_features_to_metric(torch.from_numpy(LOGITS), splits=4, shuffle=shuffle)
    assert ours(metric) == pytest.approx(found["inception_score_mean"], rel=1e-9)
    assert ours(INCEPTION_SCORE) != ours(SHUFFLED_INCEPTION_SCORE)


def test_kid(torch_fidelity: ModuleType) -> None:
    doubles = SAMPLES.astype(np.float64), REFERENCE.astype(np.float64)
    found = theirs(torch_fidelity, "kid", *doubles, kid_subsets=7, kid_subset_size=150)
    assert ours(KID_SUBSETS) == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-9)


@pytest.mark.parametrize("save_cpu_ram", [False, True])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall(torch_fidelity: ModuleType, k: int, *, save_cpu_ram: bool) -> None:
    settings = {"prc_neighborhood": k, "prc_batch_size": 200, "save_cpu_ram": save_cpu_ram}
    found = theirs(torch_fidelity, "prc", SAMPLES, REFERENCE, **settings)
    protocol = EvaluationProtocol(name="test", version=1, neighbours=k)
    assert ours(PRECISION, protocol) == pytest.approx(found["precision"], abs=1e-7)
    assert ours(RECALL, protocol) == pytest.approx(found["recall"], abs=1e-7)
    assert ours(F_SCORE, protocol) == pytest.approx(found["f_score"], abs=1e-6)
