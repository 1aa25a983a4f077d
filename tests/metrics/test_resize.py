from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metrics.features.resize import resize_like_clean_fid, resize_like_edm2, resize_like_tensorflow
from metrics.features.torchvision_import import import_torchvision

SIZE = 299
Image = Callable[[str, int, int], NDArray[np.uint8]]


def as_batch(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def as_image(batch: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(batch[0].permute(1, 2, 0).numpy())


def test_golden_resize(
    golden_image: Image,
    golden_case: Callable[[str], dict[str, Any]],
    golden_arrays: dict[str, NDArray[Any]],
    require_sha256: Callable[[ArrayLike, str], None],
) -> None:
    """Bit for bit, as the order of operations is TensorFlow's."""
    case = golden_case("inception")["expected"]
    stored = {"tiny_4x6": "resize/output_0", "tiny_9x7": "resize/output_1_rows", "tiny_down": "resize/output_down_rows"}
    for entry in case["resize"]:
        name = entry["tag"].rpartition("/")[2]
        resized = as_image(resize_like_tensorflow(as_batch(golden_image(entry["tag"], entry["h"], entry["w"])), SIZE))
        require_sha256(resized, entry["sha256_float32_hwc"])
        rows = resized if entry["rows_stored"] == "all" else resized[entry["rows_stored"]]
        np.testing.assert_array_equal(rows, golden_arrays[stored[name]])
    for number, (height, width) in enumerate([(4, 6), (9, 7)]):
        image = golden_image(f"adm-golden/dev/tiny_{height}x{width}", height, width)
        np.testing.assert_array_equal(image, golden_arrays[f"resize/input_{number}"])


def test_golden_resized_images(
    golden_image: Image,
    golden_case: Callable[[str], dict[str, Any]],
    require_sha256: Callable[[ArrayLike, str], None],
) -> None:
    for entry in golden_case("inception")["expected"]["images"]:
        image = golden_image(entry["tag"], entry["h"], entry["w"])
        require_sha256(image, entry["image_sha256"])
        resized = as_image(resize_like_tensorflow(as_batch(image), SIZE))
        require_sha256(resized, entry["resized_sha256_float32_nhwc"])


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("tag", ["tiny_4x6", "tiny_9x7"])
def test_golden_resize_refuses_half_pixel_centres(
    tag: str, antialias: bool, golden_image: Image, golden_arrays: dict[str, NDArray[Any]]
) -> None:
    """What F.interpolate gives is far outside the tolerance."""
    height, width = int(tag[5]), int(tag[7])
    image = as_batch(golden_image(f"adm-golden/dev/{tag}", height, width)).float()
    wrong = as_image(F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=antialias))
    number = ["tiny_4x6", "tiny_9x7"].index(tag)
    first_rows = golden_arrays[("resize/output_0", "resize/output_1_rows")[number]][:4]
    assert np.abs(wrong[:4] - first_rows).max() > 10


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (8, 8), (299, 299), (300, 200), (600, 31)])
def test_agrees_with_torch_fidelity(height: int, width: int, torch_fidelity: Any) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, height, width), dtype=np.uint8))
    other = torch_fidelity.interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    assert torch.equal(resize_like_tensorflow(images, SIZE), other(images.float(), (SIZE, SIZE), align_corners=False))


def test_an_image_of_the_network_s_size_stays_as_it_is() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, SIZE, SIZE), dtype=np.uint8))
    for resize in (resize_like_tensorflow, resize_like_clean_fid, resize_like_edm2):
        assert torch.equal(resize(images, SIZE), images.float())


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 48), (500, 333)])
def test_agrees_with_clean_fid(height: int, width: int, golden_image: Image) -> None:
    import_torchvision()
    from cleanfid.resize import make_resizer

    image = golden_image("clean", height, width)
    other = make_resizer("PIL", False, "bicubic", (SIZE, SIZE))(image)  # noqa: FBT003  its signature
    np.testing.assert_array_equal(as_image(resize_like_clean_fid(as_batch(image), SIZE)), other)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 48), (500, 333)])
def test_edm2_s_filter_is_pillow_s_before_it_is_cut(height: int, width: int, golden_image: Image) -> None:
    images = as_batch(golden_image("edm2", height, width) // 128 * 255)
    found, cut = resize_like_edm2(images, 224), resize_like_clean_fid(images, 224)
    # Torch's places are float32's, within 500 / 2^24 pixels, and an edge is 255 levels high: 0.0076 of a level.
    assert (found.clamp(0, 255) - cut).abs().max() < 1e-2
    assert found.min() < 0
    assert found.max() > 255


@pytest.mark.parametrize("resize", [resize_like_tensorflow, resize_like_clean_fid, resize_like_edm2])
def test_leaves_its_input_and_other_images_alone(resize: Callable[[Tensor, int], Tensor]) -> None:
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (3, 3, 20, 30), dtype=np.uint8))
    before = images.clone()
    together = resize(images, 50)
    assert torch.equal(images, before)
    assert torch.equal(together, torch.cat([resize(each[None], 50) for each in images]))
