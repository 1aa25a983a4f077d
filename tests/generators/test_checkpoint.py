"""Weights files of both forms: what loads, what is refused and why, and that nothing in them is run."""

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from generators.adm.networks import create_network, load_weights
from generators.adm.presets import PRESETS
from generators.configuration import to_mapping, with_changes
from generators.unet.checkpoint import (
    FORMAT,
    WeightsHeader,
    describe,
    file_format,
    read_header,
    read_optimizer,
    read_tensors,
    write_openai_weights,
    write_weights,
)

Weights = dict[str, Tensor]
CONFIG = with_changes(PRESETS["digits8"].config, {"model.attention_resolutions": [4]})


def build() -> Any:
    return create_network(CONFIG)


@pytest.fixture(scope="session")
def weights(fill: Callable[[nn.Module], nn.Module]) -> Weights:
    return fill(build()).state_dict()


def ours(path: Path, weights: Weights) -> None:
    write_weights(path, WeightsHeader(kind="adm", config=to_mapping(CONFIG)), weights)


def new_torch(path: Path, weights: Weights) -> None:
    torch.save(weights, path)


def old_torch(path: Path, weights: Weights) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def parameters(path: Path, weights: Weights) -> None:
    torch.save({name: nn.Parameter(value) for name, value in weights.items()}, path)


def flat_views(path: Path, weights: Weights) -> None:
    """As OpenAI's half-precision training saves: views of one storage that ask for gradients."""
    flat = torch.cat([value.flatten() for value in weights.values()]).requires_grad_()
    ends = list(itertools.accumulate(value.numel() for value in weights.values()))
    parts = zip(weights.items(), [0, *ends], ends, strict=False)
    torch.save({name: flat[start:end].view_as(value) for (name, value), start, end in parts}, path)


@pytest.mark.parametrize("write", [ours, write_openai_weights, new_torch,
                                   old_torch, parameters, flat_views])  # fmt: skip
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])  # which says nothing: content decides
def test_every_form_loads(
    write: Callable[[Path, Weights], None], suffix: str, weights: Weights, tmp_path: Path
) -> None:
    path = tmp_path / f"file{suffix}"
    write(path, weights)
    assert file_format(path) == ("safetensors" if write is ours else "torch")
    file = describe(path)
    assert dict(file.shapes) == {name: tuple(value.shape) for name, value in weights.items()}
    assert file.num_parameters == sum(value.numel() for value in weights.values())
    assert set(file.dtypes.values()) == {torch.float32}
    network = build()
    load_weights(network, path)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_network_on_the_meta_device_is_filled(weights: Weights, tmp_path: Path) -> None:
    ours(tmp_path / "w.safetensors", weights)
    with torch.device("meta"):
        network = build()
    load_weights(network, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("write", [ours, write_openai_weights])
def test_narrow_weights_are_widened(
    dtype: torch.dtype, write: Callable[[Path, Weights], None], weights: Weights, tmp_path: Path
) -> None:
    narrow = {name: value.to(dtype) if value.ndim > 1 else value for name, value in weights.items()}
    write(tmp_path / "half", narrow)
    share = sum(v.numel() for v in weights.values() if v.ndim > 1) / sum(v.numel() for v in weights.values())
    assert describe(tmp_path / "half").half_precision_share == pytest.approx(share)
    network = build()
    load_weights(network, tmp_path / "half")
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, narrow[name].float())


class Code:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("new_form", [True, False])
def test_code_in_a_file_is_never_run(new_form: bool, weights: Weights, tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({**weights, "x": Code(trace)}, path, _use_new_zipfile_serialization=new_form)
    for read in (describe, read_optimizer, lambda path: load_weights(build(), path)):
        with pytest.raises(ValueError, match=r"evil.pt: holds objects of \S+, whose code is never run here"):
            read(path)
    assert not trace.exists()


def nested(weights: Weights) -> Any:
    return {"epoch": 3, "state_dict": weights}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (nested, "entry 'epoch' is of type int"),
        (lambda w: {"state_dict": w}, "one level down, inside 'state_dict'; expected one dict of tensors by name"),
        (lambda w: list(w.values()), "holds a list"),
        (lambda _: {}, "holds an empty dict"),
        (lambda w: {**w, 3: torch.zeros(1)}, "entry 3 is of type Tensor"),
        (lambda w: {**w, "steps": torch.zeros(1, dtype=torch.int64)}, "tensor steps is of type torch.int64"),
        (lambda w: {**w, "out.2.bias": w["out.2.bias"].double()}, "out.2.bias is of type torch.float64"),
        (lambda w: {**w, "x": torch.eye(2).to_sparse()}, "tensor x has no plain values"),
        (lambda _: {"state": {}, "param_groups": []}, "holds the state of an optimizer"),
        (lambda w: {k: v for k, v in w.items() if k != "out.2.bias"}, "network: out.2.bias is missing; give"),
        (lambda w: {**w, "betas": torch.zeros(3)}, "betas is not expected"),
        (lambda w: {**w, "out.2.bias": torch.zeros(3)}, "out.2.bias is 3, expected 6"),
        (lambda w: {**w, "out.2.bias": torch.zeros(())}, "out.2.bias is a scalar, expected 6"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "time_embed.2.weight is missing and "),
    ],
)
def test_other_contents_are_refused_in_one_line(
    content: Callable[[Weights], Any], expected: str, weights: Weights, tmp_path: Path
) -> None:
    network = build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(content(weights), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"^\S+file.pt: [^\n]*$") as caught:
        load_weights(network, tmp_path / "file.pt")
    assert expected in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file, expected safetensors or a .pt"),
        (b"hello", "a file that begins with b'hell'"),
        (pickle.dumps({"a": 1}), "a file that begins with b'\\x80\\x04"),
        (b"PK\x03\x04" + bytes(200), "not a readable PyTorch file, perhaps truncated"),
        ((200).to_bytes(8, "little") + b'{"a":', "not a readable safetensors file, perhaps truncated"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_weights_file_is_refused(content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^\S+file.pt: [^\n]*$") as caught:
        describe(path)
    assert expected in str(caught.value)
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\); expected a weights file"):
        describe(tmp_path)


@pytest.mark.parametrize("write", [ours, write_openai_weights, old_torch])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated_files_are_refused(
    write: Callable[[Path, Weights], None], share: float, weights: Weights, tmp_path: Path
) -> None:
    write(tmp_path / "file", weights)
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut: not a readable [^\n]*, perhaps truncated"):
        load_weights(build(), tmp_path / "cut")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dropout": 0.3}, None),
        ({"heads": 3}, None),  # without effect beside head_channels
        ({"attention_order": "qkv-major"}, "attention_order 'head-major', not 'qkv-major'"),
        ({"head_channels": 16}, "head_channels 32, not 16"),
        ({"head_channels": None, "heads": 2}, "head_channels 32, not None"),
        ({"rescale_residual": True}, "rescale_residual False, not True"),
        ({"image_size": 16, "attention_resolutions": (8,)}, "image_size 8, not 16"),
    ],
)
def test_our_files_load_into_networks_that_compute_the_same(
    changes: dict[str, Any], expected: str | None, weights: Weights, tmp_path: Path
) -> None:
    """None of these changes alters a name or a shape."""
    ours(tmp_path / "file", weights)
    network = create_network(CONFIG, **changes)
    if expected is None:
        load_weights(network, tmp_path / "file")
    else:
        with pytest.raises(ValueError, match=r"is of a network with [^\n]*; build the network with these") as caught:
            load_weights(network, tmp_path / "file")
        assert expected in str(caught.value)


def test_the_order_of_attention_resolutions_means_nothing(tmp_path: Path) -> None:
    config = with_changes(CONFIG, {"model.attention_resolutions": [8, 4]})
    network = create_network(config)
    write_weights(tmp_path / "file", WeightsHeader(kind="adm", config=to_mapping(config)), network.state_dict())
    load_weights(create_network(config, attention_resolutions=(4, 8)), tmp_path / "file")


def test_a_header_from_before_a_field_existed_still_counts(weights: Weights, tmp_path: Path) -> None:
    config = to_mapping(CONFIG)
    del config["model"]["rescale_residual"]
    write_weights(tmp_path / "file", WeightsHeader(kind="adm", config=config), weights)
    load_weights(build(), tmp_path / "file")


def test_equal_weights_make_equal_files(weights: Weights, tmp_path: Path) -> None:
    for name in "abcdef":
        write_weights(tmp_path / name, WeightsHeader(kind="adm", config=to_mapping(CONFIG)), weights)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, "no weights of ours; its header names nothing"),
        ("{", "its header is damaged"),
        ("[]", "its header is damaged"),
        ('{"kind": "adm"}', "its header is damaged"),
        ('{"kind": "adm", "config": 3}', "its header is damaged"),
        ('{"kind": "adm", "config": {}}', "its header has no model configuration"),
        (
            '{"kind": "adm", "config": {"model": {"image_sise": 8}}}',
            "unknown key 'image_sise'; did you mean 'image_size'?",
        ),
    ],
)
def test_other_safetensors_are_refused(metadata: str | None, expected: str, weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "file", None if metadata is None else {FORMAT: metadata})
    with pytest.raises(ValueError, match=r"file: [^\n]*$") as caught:
        load_weights(build(), tmp_path / "file")
    assert expected in str(caught.value)


def test_integers_in_safetensors_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "file", WeightsHeader(kind="adm", config={}), {"x": torch.zeros(2, dtype=torch.int32)})
    with pytest.raises(ValueError, match="tensor x is of type I32; weights are F32, F16, BF16"):
        describe(tmp_path / "file")


def test_openai_weights_keep_order_values_and_nothing_else(weights: Weights, tmp_path: Path) -> None:
    """As a fixed state dict, equal bytes whatever the file is called."""
    for name in ("a.pt", "b.pt"):
        write_openai_weights(tmp_path / name, weights)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert type(content) is dict
    assert list(content) == list(weights)
    assert all(type(value) is Tensor and not value.requires_grad for value in content.values())
    assert (tmp_path / "a.pt").stat().st_size < 1.05 * sum(value.nbytes for value in weights.values()) + 100_000
    assert [name for name, _ in read_tensors(tmp_path / "a.pt")] == list(weights)


def test_an_optimizers_state_is_known(weights: Weights, tmp_path: Path) -> None:
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.05)
    for _ in range(2):
        network(torch.randn(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)).sum().backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "opt")
    found = read_optimizer(tmp_path / "opt")
    assert found is not None
    assert (found.updates, found.learning_rate, found.weight_decay) == (2, 3e-4, 0.05)
    assert (found.num_tensors, found.num_parameters) == (len(weights), sum(v.numel() for v in weights.values()))
    write_openai_weights(tmp_path / "w", weights)
    ours(tmp_path / "o", weights)
    assert read_optimizer(tmp_path / "w") is read_optimizer(tmp_path / "o") is None
    assert read_header(tmp_path / "o").kind == "adm"
