from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metrics.features import inception_network
from metrics.features.inception import CleanFeatures, InceptionFeatures
from metrics.features.inception_network import Convolution, InceptionNetwork
from metrics.protocol import FeatureBatch, FeatureNetwork, Features

CPU = torch.device("cpu")
LAYERS = {"pool": "inception/pool", "spatial": "inception/spatial", "logits": "inception/logits_unbiased"}
# Section 8: relative L2 of an image, and the largest absolute difference of an entry.
RELATIVE, ABSOLUTE = 5e-5, {"pool": 5e-4, "spatial": 5e-4, "logits": 2e-3}
State = dict[str, Tensor]
Arrays = dict[str, NDArray[Any]]
Case = Callable[[str], dict[str, Any]]


def relative_l2(found: ArrayLike, expected: ArrayLike) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def meets(layer: str, found: Tensor, expected: NDArray[Any]) -> bool:
    close = float(np.abs(found.numpy() - expected).max()) <= ABSOLUTE[layer]
    return close and relative_l2(found, expected) <= RELATIVE


@pytest.fixture(scope="module")
def images(golden_case: Case, golden_image: Callable[..., NDArray[np.uint8]]) -> dict[str, Tensor]:
    """The golden images [1, 3, H, W], by what follows `image_` in their tags, in the order of the arrays' rows."""
    entries = golden_case("inception")["expected"]["images"]
    return {
        entry["tag"].rpartition("_")[2]: torch.from_numpy(
            golden_image(entry["tag"], entry["h"], entry["w"]).transpose(2, 0, 1)[None].copy()
        )
        for entry in entries
    }


@pytest.fixture(scope="module")
def random_images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 3, 24, 24), dtype=np.uint8))


def test_follows_the_protocols(inception_features: Features, inception_weights: Path) -> None:
    assert inception_features.digest == sha256(inception_weights.read_bytes()).hexdigest()
    assert inception_features.device == CPU
    networks: list[FeatureNetwork] = [InceptionFeatures, CleanFeatures]
    assert [network.weights_name for network in networks] == ["inception", "inception"]
    assert (InceptionFeatures.protocol.name, CleanFeatures.protocol.name) == ("adm", "clean")


def test_golden_weights_are_filled_by_the_rule(
    inception_state: State, golden_case: Case, require_sha256: Callable[[ArrayLike, str], None]
) -> None:
    case = golden_case("inception")
    assert len(inception_state) == case["state_dict_entries"]
    for name, expected in case["weight_sha256"].items():
        require_sha256(inception_state[name], expected)
    total = sum(float(tensor.double().abs().sum()) for tensor in inception_state.values())
    assert total == pytest.approx(case["weight_abs_sum"], rel=1e-12)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_golden_features(
    device: str, images: dict[str, Tensor], golden_arrays: Arrays, inception_weights: Path
) -> None:
    features = InceptionFeatures.load(torch.device(device), inception_weights)
    for row, image in enumerate(images.values()):
        batch = features(image)
        for layer, name in LAYERS.items():
            expected = golden_arrays[name][row]
            found = getattr(batch, layer)[0].cpu().numpy()
            assert np.abs(found - expected).max() <= ABSOLUTE[layer]
            assert relative_l2(found, expected) <= RELATIVE


class HalfPixelFeatures(InceptionFeatures):
    """The resize that PyTorch users reach for."""

    antialias = False

    def resized(self, images: Tensor) -> Tensor:
        return F.interpolate(images.float(), (299, 299), mode="bilinear", antialias=self.antialias)


class AntialiasedFeatures(HalfPixelFeatures):
    """The same, smoothed where it shrinks."""

    antialias = True


@pytest.mark.parametrize("wrong", [HalfPixelFeatures, AntialiasedFeatures])
def test_golden_features_refuse_another_resize(
    wrong: type[HalfPixelFeatures],
    images: dict[str, Tensor],
    golden_case: Case,
    golden_arrays: Arrays,
    inception_weights: Path,
) -> None:
    features = wrong.load(CPU, inception_weights)
    known = "antialias_resize" if wrong.antialias else "half_pixel_resize"
    entries = golden_case("inception")["expected"]["images"]
    for row, (entry, image) in enumerate(zip(entries, images.values(), strict=True)):
        batch = features(image)
        for layer in ("pool", "spatial"):
            found, expected = getattr(batch, layer)[0], golden_arrays[LAYERS[layer]][row]
            assert meets(layer, found, expected) == (image.shape[-2:] == (299, 299))
            _, difference = entry["known_wrong_differences"][known][layer]
            assert relative_l2(found, expected) == pytest.approx(difference, rel=1e-3, abs=RELATIVE)


@pytest.mark.parametrize(
    "layer",
    [
        "Mixed_6b.branch1x1",
        "Mixed_6c.branch1x1",
        "Mixed_6e.branch1x1",
        "Mixed_6d.branch7x7_3",
        "Mixed_6d.branch7x7dbl_5",
    ],
)
def test_golden_spatial_features_refuse_another_layer(
    layer: str, images: dict[str, Tensor], golden_arrays: Arrays, inception_features: InceptionFeatures
) -> None:
    taken: list[Tensor] = []
    hook = inception_features.network.get_submodule(layer).register_forward_hook(lambda *call: taken.append(call[2]))
    inception_features(images["32x32"])
    hook.remove()
    wrong = taken[0][0, :7].permute(1, 2, 0).flatten()
    expected = golden_arrays["inception/spatial"][0]
    assert wrong.shape == expected.shape
    assert not meets("spatial", wrong, expected)
    assert relative_l2(wrong, expected) > 0.5


def test_golden_spatial_features_refuse_other_channels_and_orders(
    images: dict[str, Tensor], golden_arrays: Arrays, inception_features: InceptionFeatures
) -> None:
    taken: list[Tensor] = []
    branch = inception_features.network.Mixed_6d.branch1x1
    hook = branch.register_forward_hook(lambda *call: taken.append(call[2]))
    inception_features(images["32x32"])
    hook.remove()
    maps, expected = taken[0][0], golden_arrays["inception/spatial"][0]
    assert meets("spatial", maps[:7].permute(1, 2, 0).flatten(), expected)
    for wrong in (maps[:7], maps[:7].permute(2, 1, 0), maps[:7].permute(0, 2, 1), maps[-7:].permute(1, 2, 0)):
        assert not meets("spatial", wrong.flatten(), expected)


def test_golden_logits_refuse_the_bias(
    images: dict[str, Tensor], golden_arrays: Arrays, inception_features: Features, inception_state: State
) -> None:
    logits, expected = inception_features(images["32x32"]).logits, golden_arrays["inception/logits_unbiased"][0]
    assert logits is not None
    assert meets("logits", logits[0], expected)
    assert not meets("logits", logits[0] + inception_state["fc.bias"], expected)


@pytest.mark.parametrize("variant", ["bn_eps_1e-5", "avg_pool_counts_padding", "average_instead_of_max_in_7c"])
def test_golden_wrong_networks_give_what_is_known_of_them(
    variant: str,
    images: dict[str, Tensor],
    golden_case: Case,
    golden_arrays: Arrays,
    inception_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that the tolerances are known to tell them from the right one."""
    if variant == "bn_eps_1e-5":
        monkeypatch.setattr(inception_network, "NORM_EPSILON", 1e-5)
    features = InceptionFeatures.load(CPU, inception_weights)
    if variant == "avg_pool_counts_padding":
        monkeypatch.setattr(Convolution, "of_means", lambda branch, x: branch(F.avg_pool2d(x, 3, 1, 1)))
    if variant == "average_instead_of_max_in_7c":
        features.network.Mixed_7c.last = False
    batch = features(images["32x32"])
    known = golden_case("inception")["expected"]["network_variants_relative_l2"][variant]
    for layer in ("pool", "spatial"):
        found, expected = getattr(batch, layer)[0], golden_arrays[LAYERS[layer]][0]
        assert relative_l2(found, expected) == pytest.approx(known[f"{layer}_relative_l2"], rel=1e-3, abs=RELATIVE)
    assert not meets("pool", batch.pool[0], golden_arrays["inception/pool"][0])


def test_torch_fidelity_s_module_gives_the_same(
    torch_fidelity: Any, inception_weights: Path, inception_features: Features, random_images: Tensor
) -> None:
    module = torch_fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    spatial: list[Tensor] = []
    module.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[2]))
    with torch.inference_mode():
        pool, logits = module(random_images)
    ours = inception_features(random_images)
    assert relative_l2(ours.pool, pool) < 2e-5
    assert relative_l2(ours.logits, logits) < 2e-5  # type: ignore[arg-type]
    assert relative_l2(ours.spatial, spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1)) < 2e-5  # type: ignore[arg-type]


def test_folding_changes_rounding_only(inception_state: State, random_images: Tensor) -> None:
    network = InceptionNetwork().eval().requires_grad_(requires_grad=False)
    network.load_state_dict(inception_state)
    x = random_images[:1, :, :1, :1].double().expand(1, 3, 299, 299) / 128 - torch.linspace(0, 2, 299).double()
    middle, pool = network.double().blocks(network.stem(x))
    network.float().fold()
    folded_middle, folded_pool = network.blocks(network.stem(x.float()))
    assert relative_l2(folded_pool, pool) < 2e-5
    assert relative_l2(folded_middle, middle) < 2e-5


@pytest.mark.parametrize("batch_size", [1, 3, 17])
def test_an_image_does_not_see_its_batch(batch_size: int, inception_features: Features, random_images: Tensor) -> None:
    images = random_images[: batch_size * 2]
    whole = inception_features(images)
    parts = [inception_features(part) for part in torch.split(images, batch_size)]
    for layer in LAYERS:
        joined = torch.cat([getattr(part, layer) for part in parts])
        assert relative_l2(joined, getattr(whole, layer)) < 1e-5


def test_repeats_itself_and_keeps_no_graph(inception_features: Features, random_images: Tensor) -> None:
    one, other = inception_features(random_images[:3]), inception_features(random_images[:3])
    assert torch.equal(one.pool, other.pool)
    assert not one.pool.requires_grad


def test_shapes_types_and_signs(inception_features: Features, random_images: Tensor) -> None:
    batch: FeatureBatch = inception_features(random_images[:2])
    assert batch.spatial is not None
    assert batch.logits is not None
    shapes = [tuple(rows.shape) for rows in (batch.pool, batch.spatial, batch.logits)]
    assert shapes == [(2, 2048), (2, 2023), (2, 1008)]
    assert batch.pool.min() >= 0
    assert batch.spatial.min() >= 0


def test_clean_is_the_same_network_behind_another_resize(
    inception_features: Features, inception_weights: Path, random_images: Tensor
) -> None:
    clean = CleanFeatures.load(CPU, inception_weights)
    assert clean.digest == inception_features.digest
    small, full = (
        random_images[:1],
        torch.from_numpy(np.random.default_rng(5).integers(0, 256, (1, 3, 299, 299), dtype=np.uint8)),
    )
    assert torch.equal(clean(full).pool, inception_features(full).pool)
    assert relative_l2(clean(small).pool, inception_features(small).pool) > 0.01


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "torch.float32; expected torch.uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\); expected \[batch, 3, height, width\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(2, 1, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"\(2, 8, 8, 3\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\(0, 3, 8, 8\)"),
    ],
)
def test_other_images_are_refused(images: Tensor, message: str, inception_features: Features) -> None:
    with pytest.raises(ValueError, match=message):
        inception_features(images)


def test_safetensors_and_old_files_give_the_same_network(
    tmp_path: Path, inception_state: State, inception_features: Features, random_images: Tensor
) -> None:
    without_counters = {name: tensor for name, tensor in inception_state.items() if not name.endswith("_tracked")}
    torch.save(without_counters, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(inception_state, tmp_path / "a.safetensors")
    expected = inception_features(random_images[:1]).pool
    for path in tmp_path.iterdir():
        features = InceptionFeatures.load(CPU, path)
        assert torch.equal(features(random_images[:1]).pool, expected)
        assert features.digest == sha256(path.read_bytes()).hexdigest()


def test_weights_are_needed() -> None:
    with pytest.raises(ValueError, match="features clean need weights and found none"):
        CleanFeatures.load(CPU)
