"""Features of a scripted module that a user hands in."""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metrics.features.torchscript import TorchScriptFeatures

# torch says of its own format that it will not grow; it is still the one in which metric networks are handed around.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
CPU = torch.device("cpu")
IMAGES = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.double().mean(dim=(2, 3))


class Optional(nn.Module):
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        means = images.float().mean(dim=(2, 3))
        return means if return_features else means.softmax(dim=1)


class Map(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


def saved(module: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), str(path))
    return path


@pytest.mark.parametrize("module", [Means(), Optional()])
def test_features_are_what_the_module_gives(module: nn.Module, tmp_path: Path) -> None:
    path = saved(module, tmp_path / "net.pt")
    features = TorchScriptFeatures.load(CPU, path)
    batch = features(IMAGES)
    torch.testing.assert_close(batch.pool, IMAGES.float().mean(dim=(2, 3)))
    assert batch.pool.dtype == torch.float32
    assert batch.spatial is None
    assert batch.logits is None
    assert features.digest == sha256(path.read_bytes()).hexdigest()


def test_what_is_no_such_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no module")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    for name in ("text.pt", "state.pt"):
        with pytest.raises(ValueError, match=rf"{name}: no TorchScript file"):
            TorchScriptFeatures.load(CPU, tmp_path / name)
    with pytest.raises(ValueError, match="need a file"):
        TorchScriptFeatures.load(CPU)
    features = TorchScriptFeatures.load(CPU, saved(Map(), tmp_path / "map.pt"))
    with pytest.raises(
        ValueError, match=r"map.pt: gives torch.float32 \(3, 3, 8, 8\) for 3 images; .* \[3, features\]"
    ):
        features(IMAGES)
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[B, 3, H, W\]"):
        features(IMAGES.float())


def test_no_code_in_the_file_is_run_outside_torchscript(tmp_path: Path) -> None:
    """A pickle that would run code is no TorchScript archive."""

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    torch.save(Bomb(), tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="no TorchScript file"):
        TorchScriptFeatures.load(CPU, tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()
