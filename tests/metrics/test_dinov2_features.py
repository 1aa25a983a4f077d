"""DINOv2 features, by small networks of the same kind; torchvision's vision transformer is the witness."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from metrics.features import dinov2
from metrics.features.dinov2 import DinoFeatures
from metrics.features.dinov2_network import Attention, DinoNetwork
from metrics.features.torchvision_import import import_torchvision
from metrics.protocol import FeatureNetwork, Features

CPU = torch.device("cpu")
WIDTH, DEPTH, HEADS = 48, 3, 4
State = dict[str, Tensor]
small = partial(DinoNetwork, width=WIDTH, depth=DEPTH, num_heads=HEADS)


def relative_l2(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def state(gaussian: Callable[..., NDArray[np.float64]]) -> State:
    """Weights that make every branch, scale and position matter."""
    filled = {}
    for name, tensor in small().state_dict().items():
        values = torch.from_numpy(gaussian(f"dinov2/{name}", tuple(tensor.shape))).float()
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            filled[name] = 1 + 0.2 * values
        elif name.endswith("weight"):
            filled[name] = values * tensor[0].numel() ** -0.5
        else:
            filled[name] = 0.3 * values
    return filled


@pytest.fixture(scope="module")
def network(state: State) -> DinoNetwork:
    network = small()
    network.load_state_dict(state, strict=True)
    return network


@pytest.fixture(scope="module")
def features(network: DinoNetwork) -> DinoFeatures:
    return DinoFeatures(network, digest="of the rule", device=CPU)


@pytest.fixture(scope="module")
def witness(state: State) -> nn.Module:
    """torchvision's module with the same weights: scales folded into the maps before them, positions of 16 x 16."""
    import_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    positions = [state["pos_embed"][:, :1], positions_by_hand(state["pos_embed"], 16, 16.1)]
    taken = {"class_token": state["cls_token"], "encoder.pos_embedding": torch.cat(positions, dim=1)}
    for kind in ("weight", "bias"):
        taken[f"conv_proj.{kind}"] = state[f"patch_embed.proj.{kind}"]
        taken[f"encoder.ln.{kind}"] = state[f"norm.{kind}"]
        for number in range(DEPTH):
            ours, theirs = f"blocks.{number}.", f"encoder.layers.encoder_layer_{number}."
            taken[f"{theirs}ln_1.{kind}"] = state[f"{ours}norm1.{kind}"]
            taken[f"{theirs}ln_2.{kind}"] = state[f"{ours}norm2.{kind}"]
            taken[f"{theirs}self_attention.in_proj_{kind}"] = state[f"{ours}attn.qkv.{kind}"]
            taken[f"{theirs}mlp.0.{kind}"] = state[f"{ours}mlp.fc1.{kind}"]
            for last, scale, name in (("attn.proj", "ls1", "self_attention.out_proj"), ("mlp.fc2", "ls2", "mlp.3")):
                gamma = state[f"{ours}{scale}.gamma"]
                by_row = gamma if kind == "bias" else gamma[:, None]
                taken[f"{theirs}{name}.{kind}"] = state[f"{ours}{last}.{kind}"] * by_row
    module: nn.Module = VisionTransformer(224, 14, DEPTH, HEADS, WIDTH, 4 * WIDTH)
    module.heads = nn.Identity()  # type: ignore[assignment]
    module.load_state_dict(taken, strict=True)
    return module.double().eval()


def positions_by_hand(pos_embed: Tensor, wanted: int, divisor: float) -> Tensor:
    """Bicubic interpolation (Keys's kernel, a = -0.75) of the patches' positions, edges repeated, in float64."""
    found = int((pos_embed.shape[1] - 1) ** 0.5)
    weights = torch.zeros(wanted, found, dtype=torch.float64)
    for i in range(wanted):
        place = (i + 0.5) * found / divisor - 0.5
        for source in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            x = abs(place - source)
            near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[i, min(max(source, 0), found - 1)] += near if x <= 1 else far
    grid = pos_embed[0, 1:].double().reshape(found, found, -1)
    return torch.einsum("iy,jx,yxc->ijc", weights, weights, grid).reshape(1, wanted**2, -1)


def input_by_hand(images: Tensor) -> Tensor:
    """Pillow's antialiased bicubic filter on floats, and ImageNet's mean and deviation, in float64."""
    rows = []
    for image in images:
        planes = [Image.fromarray(plane.numpy().astype(np.float32)) for plane in image]
        resized = [np.asarray(plane.resize((224, 224), Image.Resampling.BICUBIC), np.float64) for plane in planes]
        rows.append(torch.from_numpy(np.stack(resized)) / 255)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.stack(rows) - mean.double()[:, None, None]) / deviation.double()[:, None, None]


def random_images(height: int, width: int, number: int = 2) -> Tensor:
    rng = np.random.default_rng(height * 1000 + width)
    return torch.from_numpy(rng.integers(0, 256, (number, 3, height, width), dtype=np.uint8))


def test_follows_the_protocol(features: Features) -> None:
    registered: FeatureNetwork = DinoFeatures
    assert registered.weights_name == "dinov2"
    assert (features.name, features.protocol.name, features.protocol.version) == ("dinov2", "dinov2", 1)
    assert features.layers == {"pool"}
    batch = features(random_images(20, 20))
    assert (batch.pool.shape, batch.pool.dtype, batch.spatial, batch.logits) == ((2, WIDTH), torch.float32, None, None)
    assert not batch.pool.requires_grad


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (224, 224), (30, 50), (300, 256), (1, 7)])
def test_torchvision_s_transformer_gives_the_same(
    height: int, width: int, device: str, state: State, witness: nn.Module
) -> None:
    """On images of any shape: they are squashed to a square."""
    network = small()
    network.load_state_dict(state)
    images = random_images(height, width)
    found = DinoFeatures(network, digest="", device=torch.device(device))(images).pool.cpu()
    with torch.inference_mode():
        expected = witness(input_by_hand(images))
    assert relative_l2(found, expected) < 5e-6


def test_every_weight_but_the_mask_token_matters(state: State, features: Features) -> None:
    images = random_images(40, 40, 1)
    expected = features(images).pool
    for name, tensor in state.items():
        network = small()
        network.load_state_dict({**state, name: tensor.roll(1, -1) + 0.01})
        found = DinoFeatures(network, digest="", device=CPU)(images).pool
        assert torch.equal(found, expected) == (name == "mask_token"), name


def test_is_vit_large_by_meta_s_names() -> None:
    with torch.device("meta"):
        large = DinoNetwork()
    shapes = {name: tuple(tensor.shape) for name, tensor in large.state_dict().items()}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 304_368_640
    outside = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.")}
    assert outside == {
        "cls_token": (1, 1, 1024),
        "pos_embed": (1, 1370, 1024),
        "mask_token": (1, 1024),
        "patch_embed.proj.weight": (1024, 3, 14, 14),
        "patch_embed.proj.bias": (1024,),
        "norm.weight": (1024,),
        "norm.bias": (1024,),
    }
    block = {
        **{f"norm{n}.{kind}": (1024,) for n in (1, 2) for kind in ("weight", "bias")},
        **{f"ls{n}.gamma": (1024,) for n in (1, 2)},
    }
    for name, found, made in (
        ("attn.qkv", 1024, 3072),
        ("attn.proj", 1024, 1024),
        ("mlp.fc1", 1024, 4096),
        ("mlp.fc2", 4096, 1024),
    ):
        block |= {f"{name}.weight": (made, found), f"{name}.bias": (made,)}
    wanted = {f"blocks.{n}.{name}": shape for n in range(24) for name, shape in block.items()}
    assert {name: shape for name, shape in shapes.items() if name not in outside} == wanted
    assert {module.num_heads for module in large.modules() if isinstance(module, Attention)} == {16}


@pytest.mark.parametrize("grid", [1, 7, 16, 36, 38])
def test_positions_are_interpolated_with_the_offset(grid: int, network: DinoNetwork) -> None:
    with torch.inference_mode():
        found = network.positions(grid)
    assert torch.equal(found[:, 0], network.pos_embed[:, 0])
    expected = positions_by_hand(network.pos_embed.detach(), grid, grid + 0.1)
    assert found.shape == (1, 1 + grid**2, WIDTH)
    assert relative_l2(found[:, 1:], expected) < 1e-5
    without = positions_by_hand(network.pos_embed.detach(), grid, grid)
    assert relative_l2(found[:, 1:], without) > 1e-3


def test_positions_of_the_trained_grid_stay_as_they_are(network: DinoNetwork) -> None:
    assert network.positions(37) is network.pos_embed


def test_another_resize_gives_other_features(features: DinoFeatures) -> None:
    """Not antialiased, or rounded to levels: so that the comparison above is known to tell them apart."""
    images = random_images(300, 300)
    expected = features(images).pool
    aliased = F.interpolate(images.float(), (224, 224), mode="bicubic").round().clamp(0, 255).byte()
    assert relative_l2(features(aliased).pool, expected) > 1e-2
    rounded = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).round().clamp(0, 255).byte()
    assert relative_l2(features(rounded).pool, expected) > 1e-4


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_an_image_does_not_see_its_batch(batch_size: int, features: DinoFeatures) -> None:
    images = random_images(24, 24, 9)
    parts = [features(part).pool for part in torch.split(images, batch_size)]
    assert relative_l2(torch.cat(parts), features(images).pool) < 1e-6


def test_repeats_itself_in_full_float32(features: DinoFeatures) -> None:
    allowed: list[bool] = []
    hook = features.network.norm.register_forward_hook(
        lambda *_: allowed.append(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    )
    images = random_images(24, 24, 3)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert torch.equal(features(images).pool, features(images).pool)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        hook.remove()
    assert allowed == [False, False]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "torch.float32; expected torch.uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\); expected \[batch, 3, height, width\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(2, 1, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\(0, 3, 8, 8\)"),
    ],
)
def test_other_images_are_refused(images: Tensor, message: str, features: Features) -> None:
    with pytest.raises(ValueError, match=message):
        features(images)


def test_loads_either_form(tmp_path: Path, state: State, features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinov2, "DinoNetwork", small)
    torch.save(state, tmp_path / "weights.pth")
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    images = random_images(24, 24)
    for path in tmp_path.iterdir():
        loaded = DinoFeatures.load(CPU, path)
        assert torch.equal(loaded(images).pool, features(images).pool)
        assert loaded.digest == sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_token": None}, "is of another network: cls_token is missing"),
        ({"register_tokens": torch.zeros(1, 4, WIDTH)}, "register_tokens is not expected"),
        ({"pos_embed": torch.zeros(1, 257, WIDTH)}, f"pos_embed is 1x257x{WIDTH}, expected 1x1370x{WIDTH}"),
        ({"norm.weight": torch.full((WIDTH,), torch.nan)}, "norm.weight holds values that are not finite"),
        ({"norm.bias": torch.zeros(WIDTH).half()}, "norm.bias is torch.float16, expected torch.float32"),
    ],
)
def test_other_weights_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dinov2, "DinoNetwork", small)
    path = tmp_path / "weights.pth"
    torch.save({name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}, path)
    with pytest.raises(ValueError, match=message) as raised:
        DinoFeatures.load(CPU, path)
    assert "\n" not in str(raised.value)


def test_smaller_networks_are_refused(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    with pytest.raises(ValueError, match=r"cls_token is 1x1x48, expected 1x1x1024, .* and 340 more"):
        DinoFeatures.load(CPU, tmp_path / "dinov2_vits14_pretrain.pth")


def test_weights_are_needed() -> None:
    with pytest.raises(ValueError, match="features dinov2 need weights and found none; give dinov2_vitl14_pretrain"):
        DinoFeatures.load(CPU)
