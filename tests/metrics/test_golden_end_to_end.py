"""Images to numbers, as the command line of ADM's evaluator gave them for the same images and weights."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from metrics.comparison import Comparison
from metrics.evaluation_protocol import PrPrecision
from metrics.frechet import FID, SFID
from metrics.inception_score import INCEPTION_SCORE, inception_score
from metrics.manifold_metrics import PRECISION, RECALL
from metrics.protocol import EvaluationProtocol, FeatureBatch, Features
from metrics.statistics import FeatureSet, Moments

SPLIT_SIZE = 5000
DISTANCE, SCORE = 5e-5, 2e-5
"""Relative tolerances of section 8: of FID and sFID, and of the Inception Score."""

Rule = Callable[..., NDArray[np.float64]]
Extracted = Mapping[str, FeatureBatch]


def compared(samples: FeatureSet, reference: FeatureSet, pr_precision: PrPrecision = "fp32") -> Comparison:
    protocol = EvaluationProtocol(name="test", version=1, pr_precision=pr_precision)
    return Comparison(samples=samples, reference=reference, protocol=protocol)


@pytest.fixture(scope="module")
def case(golden_case: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return golden_case("end_to_end")


@pytest.fixture(scope="module")
def extracted(
    case: dict[str, Any],
    golden_image: Callable[[str, int, int], NDArray[np.uint8]],
    require_sha256: Callable[[ArrayLike, str], None],
    inception_features: Features,
) -> Extracted:
    """Features of the 160 reference images and of the 200 samples."""
    batches = {}
    for name, number in (("ref", case["n_ref"]), ("sample", case["n_sample"])):
        drawn = [golden_image(f"adm-golden/dev/e2e/{name}/{i}", case["h"], case["w"]) for i in range(number)]
        images = np.stack(drawn)
        if name == "sample":
            images = (images.astype(np.int64) * 7 // 8 + 24).astype(np.uint8)
        require_sha256(images, case["sha256"][f"{name}_arr_0"])
        batches[name] = inception_features(torch.from_numpy(images).permute(0, 3, 1, 2))
    return batches


@pytest.fixture(scope="module")
def sets(extracted: Extracted) -> dict[str, FeatureSet]:
    built = {name: FeatureSet() for name in extracted}
    for name, batch in extracted.items():
        built[name].update(batch)
    return built


@pytest.fixture(scope="module")
def stored(case: dict[str, Any], uniform: Rule, require_sha256: Callable[[ArrayLike, str], None]) -> dict[str, Moments]:
    """The statistics that the second reference file brings along."""
    moments = {}
    for layer, ending, dimensions in (("pool", "", 2048), ("spatial", "_s", 2023)):
        mean = uniform(f"e2e/mu{ending}", (dimensions,))
        covariance = np.diag(0.0625 + 0.25 * uniform(f"e2e/sigma{ending}", (dimensions,)))
        require_sha256(mean, case["sha256"][f"mu{ending}"])
        require_sha256(covariance, case["sha256"][f"sigma{ending}"])
        moments[layer] = Moments.from_mean_and_covariance(mean, covariance, case["n_ref"])
    return moments


def test_golden_against_images(case: dict[str, Any], sets: dict[str, FeatureSet]) -> None:
    expected = case["expected"]["reference_images_only"]
    for metric in (FID, SFID):
        value = metric.compute(compared(sets["sample"], sets["ref"]))
        assert value == pytest.approx(expected[metric.label], rel=DISTANCE)
    score = INCEPTION_SCORE.compute(compared(sets["sample"], sets["ref"]))
    assert score == pytest.approx(expected["Inception Score"], rel=SCORE)


def test_golden_against_stored_statistics(
    case: dict[str, Any], sets: dict[str, FeatureSet], stored: dict[str, Moments]
) -> None:
    expected = case["expected"]["reference_with_stored_statistics"]
    reference = FeatureSet(pool=stored["pool"], spatial=stored["spatial"])
    for metric in (FID, SFID):
        value = metric.compute(compared(sets["sample"], reference))
        assert value == pytest.approx(expected[metric.label], rel=DISTANCE)


def test_golden_stored_statistics_refuse_another_order(
    case: dict[str, Any], extracted: Extracted, stored: dict[str, Moments], feature_set: Callable[..., FeatureSet]
) -> None:
    """Channel, row, column: an order that nothing notices until a stored file is used."""
    sample = extracted["sample"]
    assert sample.spatial is not None
    wrong = sample.spatial.reshape(-1, 17, 17, 7).permute(0, 3, 1, 2).flatten(1)
    samples = feature_set(sample.pool.numpy(), spatial=wrong.numpy())
    value = SFID.compute(compared(samples, FeatureSet(pool=stored["pool"], spatial=stored["spatial"])))
    expected = case["expected"]
    known_wrong = expected["torch_and_float64"]["known_wrong"]["sFID_against_stored_with_NCHW_order"]
    assert value == pytest.approx(known_wrong, rel=DISTANCE)
    assert value != pytest.approx(expected["reference_with_stored_statistics"]["sFID"], rel=DISTANCE)


def test_golden_inception_score_refuses_the_bias(
    case: dict[str, Any], extracted: Extracted, inception_state: dict[str, torch.Tensor]
) -> None:
    logits = extracted["sample"].logits
    assert logits is not None
    value = inception_score((logits + inception_state["fc.bias"]).numpy(), SPLIT_SIZE)
    expected = case["expected"]
    assert value == pytest.approx(expected["torch_and_float64"]["known_wrong"]["Inception Score with bias"], rel=SCORE)
    assert value != pytest.approx(expected["reference_images_only"]["Inception Score"], rel=SCORE)


@pytest.mark.parametrize("pr_precision", ["fp16", "fp32"])
def test_golden_precision_and_recall(
    pr_precision: PrPrecision, case: dict[str, Any], sets: dict[str, FeatureSet]
) -> None:
    found = compared(sets["sample"], sets["ref"], pr_precision)
    if pr_precision == "fp16":
        expected = case["expected"]["reference_images_only"]
        precision, recall = expected["Precision"], expected["Recall"]
    else:
        expected = case["expected"]["torch_and_float64"]
        precision, recall = expected["Precision_float64"], expected["Recall_float64"]
    assert PRECISION.compute(found) == pytest.approx(precision, abs=2 / case["n_sample"])
    assert RECALL.compute(found) == pytest.approx(recall, abs=2 / case["n_ref"])
