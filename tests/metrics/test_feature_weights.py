"""What a file of weights may hold, and what is said of any other."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from metrics.features.weights import load_strictly, weights_digest

State = dict[str, Tensor]


class Small(nn.Module):
    """A convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)


class Touches:
    """A pickle that would make a file if anybody ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def changed(state: State, name: str, value: Tensor | None) -> State:
    return {key: tensor for key, tensor in {**state, name: value}.items() if tensor is not None}


@pytest.fixture
def state() -> State:
    return dict(Small().state_dict())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loads_every_form(how: str, device: str, path: Path, state: State) -> None:
    if how == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    with torch.device(device):
        network = Small()
    load_strictly(network, path)
    assert torch.equal(network.conv.weight, state["conv.weight"])
    assert torch.equal(network.bn.weight, state["bn.weight"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("conv.weight", None, "is of another network: conv.weight is missing"),
        ("conv.weight", torch.zeros(4, 3, 3, 3), "conv.weight is 4x3x3x3, expected 4x3x1x1"),
        ("conv.bias", torch.zeros(4), "conv.bias is not expected"),
        ("bn.weight", torch.zeros(4, dtype=torch.float16), "bn.weight is torch.float16, expected torch.float32"),
        ("bn.bias", torch.full((4,), torch.nan), "bn.bias holds values that are not finite"),
        ("bn.bias", torch.zeros(4).to_sparse(), "entry 'bn.bias' is no plain tensor"),
    ],
)
def test_refuses_another_network(name: str, value: Tensor | None, expected: str, path: Path, state: State) -> None:
    torch.save(changed(state, name, value), path)
    with pytest.raises(ValueError, match=expected) as refused:
        load_strictly(Small(), path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_says_how_many_differences_there_are(path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"conv.weight is missing, .* is missing, .* is missing and 3 more"):
        load_strictly(Small(), path)


def test_counters_may_be_missing(path: Path, state: State) -> None:
    torch.save(changed(state, "bn.num_batches_tracked", None), path)
    load_strictly(Small(), path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not readable, perhaps truncated"),
        (b"no weights at all", "holds more than tensors, whose code is never run here, or is damaged"),
        (b"PK\x03\x04 no zip", "not readable, perhaps truncated"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "not readable, perhaps truncated"),
    ],
)
def test_refuses_what_is_no_file_of_weights(content: bytes, expected: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        load_strictly(Small(), path)


@pytest.mark.parametrize("content", [[1, 2], {}, torch.zeros(3), {"model": {"conv.weight": torch.zeros(1)}}, {1: 2}])
def test_refuses_what_is_no_state_dict(content: Any, path: Path) -> None:
    torch.save(content, path)
    with pytest.raises(ValueError, match="expected tensors by name, as in a state_dict"):
        load_strictly(Small(), path)


@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
def test_runs_no_code(saved_by: str, path: Path, tmp_path: Path) -> None:
    trap = {"conv.weight": Touches(tmp_path / "touched")}
    if saved_by == "torch":
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="whose code is never run here"):
        load_strictly(Small(), path)
    assert not (tmp_path / "touched").exists()


def test_every_truncation_is_one_line(path: Path, state: State) -> None:
    for save in (torch.save, safetensors.torch.save_file):
        save(state, path)
        whole = path.read_bytes()
        for kept in range(0, len(whole) - 1, 97):
            path.write_bytes(whole[:kept])
            with pytest.raises(ValueError, match=r"^[^\n]*$"):
                load_strictly(Small(), path)


@pytest.mark.parametrize("read", [weights_digest, lambda path: load_strictly(Small(), path)])
def test_a_missing_file_is_named(read: Callable[[Path], object], path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights: cannot be read \(No such file or directory\)"):
        read(path)
