import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

import metrics.features.digits
from metrics.comparison import Comparison
from metrics.copies import COPIED
from metrics.features.digits import WEIGHTS_PATH, DigitsFeatures, network_input
from metrics.frechet import FID, SFID
from metrics.inception_score import INCEPTION_SCORE
from metrics.manifold_metrics import PRECISION, RECALL
from metrics.protocol import EvaluationProtocol, Features
from metrics.statistics import FeatureSet

PROTOCOL = EvaluationProtocol(name="test", version=1)
CPU = torch.device("cpu")


def as_images(grey: NDArray[np.floating]) -> Tensor:
    """Uint8 [n, 3, 8, 8] of grey values [n, 64] or [n, 8, 8] from 0 to 16."""
    levels = np.rint(np.clip(grey, 0, 16) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(levels).expand(-1, 3, -1, -1).contiguous()


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return as_images(load_digits().images)


@pytest.fixture(scope="module")
def features_of(digits_features: DigitsFeatures) -> Callable[[Tensor], FeatureSet]:
    def build(images: Tensor) -> FeatureSet:
        features = FeatureSet()
        for batch in images.split(256):
            features.update(digits_features(batch))
        return features

    return build


def test_follows_the_protocol(digits_features: Features) -> None:
    assert digits_features.name == "digits"
    assert digits_features.device == CPU
    assert digits_features.digest == sha256(WEIGHTS_PATH.read_bytes()).hexdigest()


def test_shapes_types_and_signs(digits_features: DigitsFeatures, digits: Tensor) -> None:
    batch = digits_features(digits[:5])
    assert batch.spatial is not None
    assert batch.logits is not None
    shapes = [tuple(rows.shape) for rows in (batch.pool, batch.spatial, batch.logits)]
    assert shapes == [(5, 64), (5, 448), (5, 10)]
    assert batch.pool.min() >= 0
    assert batch.spatial.min() >= 0


def test_knows_the_digits(features_of: Callable[[Tensor], FeatureSet], digits: Tensor) -> None:
    logits = features_of(digits).logit_rows
    assert logits is not None
    assert (logits.argmax(axis=1) == load_digits().target).mean() > 0.99


def test_the_file_says_how_it_was_made() -> None:
    with safetensors.safe_open(WEIGHTS_PATH, framework="numpy") as file:
        training = json.loads(file.metadata()["training"])
    assert training["held_out_accuracy"] > 0.98
    assert {"data", "seed", "python", "torch", "sklearn"} < training.keys()


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_an_image_does_not_see_its_batch(batch_size: int, digits_features: DigitsFeatures, digits: Tensor) -> None:
    whole = digits_features(digits[:100])
    parts = [digits_features(part) for part in digits[:100].split(batch_size)]
    for layer in ("pool", "spatial", "logits"):
        joined = torch.cat([getattr(part, layer) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, layer), rtol=1e-5, atol=1e-5)


def test_repeats_itself_and_keeps_no_graph(digits_features: DigitsFeatures, digits: Tensor) -> None:
    one, other = digits_features(digits[:20]), digits_features(digits[:20])
    assert torch.equal(one.pool, other.pool)
    assert not one.pool.requires_grad


def test_spatial_layer_is_flattened_row_column_channel(digits_features: DigitsFeatures, digits: Tensor) -> None:
    batch = digits_features(digits[:2])
    _, spatial, _ = digits_features.network(network_input(digits[:2]))
    assert batch.spatial is not None
    for row, column, channel in [(0, 0, 0), (0, 0, 6), (0, 1, 0), (3, 5, 2), (7, 7, 6)]:
        flat = batch.spatial[:, (row * 8 + column) * 7 + channel]
        torch.testing.assert_close(flat, spatial[:, channel, row, column])


def test_all_features_are_alive(features_of: Callable[[Tensor], FeatureSet], digits: Tensor) -> None:
    features = features_of(digits)
    assert features.spatial is not None
    for moments in (features.pool, features.spatial):
        spread = np.sqrt(np.diag(moments.covariance()))
        assert (spread > 0.01).mean() > 0.9


@pytest.mark.parametrize("size", [8, 11, 16, 64])
def test_takes_any_square(size: int, digits_features: DigitsFeatures) -> None:
    assert digits_features(torch.zeros(2, 3, size, size, dtype=torch.uint8)).pool.shape == (2, 64)


def test_a_digit_of_twice_the_size_stays_that_digit(digits_features: DigitsFeatures, digits: Tensor) -> None:
    large = digits[:200].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    small_logits, large_logits = digits_features(digits[:200]).logits, digits_features(large).logits
    assert small_logits is not None
    assert large_logits is not None
    assert (small_logits.argmax(1) == large_logits.argmax(1)).double().mean() > 0.9


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "torch.float32; expected torch.uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\); expected \[batch, 3, height, width\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(2, 1, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"\(2, 8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 9, dtype=torch.uint8), "8 x 9"),
        (torch.zeros(2, 3, 7, 7, dtype=torch.uint8), "7 x 7"),
    ],
)
def test_other_images_are_refused(images: Tensor, message: str, digits_features: DigitsFeatures) -> None:
    with pytest.raises(ValueError, match=message):
        digits_features(images)


def test_an_incomplete_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = safetensors.torch.load(WEIGHTS_PATH.read_bytes())
    del weights["classes.weight"]
    path = tmp_path / "digits.safetensors"
    safetensors.torch.save_file(weights, path)
    monkeypatch.setattr(metrics.features.digits, "WEIGHTS_PATH", path)
    with pytest.raises(RuntimeError, match=r"classes\.weight"):
        DigitsFeatures.load(CPU)


def against(samples: FeatureSet, reference: FeatureSet) -> Comparison:
    return Comparison(samples=samples, reference=reference, protocol=PROTOCOL)


def gaussian_per_class(rng: np.random.Generator) -> Tensor:
    """As many images of each class as there are, from a Gaussian fitted to its pixels."""
    data = load_digits()
    fits = [data.data[data.target == digit] for digit in range(10)]
    drawn = [rng.multivariate_normal(fit.mean(0), np.cov(fit, rowvar=False), len(fit)) for fit in fits]
    return as_images(np.concatenate(drawn))


def test_the_numbers_rank_generators(features_of: Callable[[Tensor], FeatureSet], digits: Tensor) -> None:
    rng = np.random.default_rng(0)
    order = torch.from_numpy(rng.permutation(len(digits)))
    all_digits = features_of(digits)
    noise = torch.from_numpy(rng.integers(0, 256, size=digits.shape, dtype=np.uint8))
    pairs = [
        (features_of(digits[order[:898]]), features_of(digits[order[898:]])),
        (features_of(gaussian_per_class(rng)), all_digits),
        (features_of(noise), all_digits),
    ]
    for metric, factor in ((FID, 3), (SFID, 1.5)):
        real, fitted, nonsense = (metric.compute(against(*pair)) for pair in pairs)
        assert 0 < real * factor < fitted
        assert fitted * 10 < nonsense
    for metric in (INCEPTION_SCORE, PRECISION, RECALL):
        real, fitted, nonsense = (metric.compute(against(*pair)) for pair in pairs)
        assert real > fitted > nonsense
    assert [COPIED.compute(against(*pair)) for pair in pairs] == [0, 0, 0]


def test_a_memoriser_is_caught(features_of: Callable[[Tensor], FeatureSet], digits: Tensor) -> None:
    drawn = torch.from_numpy(np.random.default_rng(1).integers(0, len(digits), size=500))
    samples, reference = features_of(digits[drawn]), features_of(digits)
    assert COPIED.compute(against(samples, reference)) == 1
    assert PRECISION.compute(against(samples, reference)) == 1
