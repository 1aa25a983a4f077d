from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metrics.flops import ComputeCost, count_cost

CONV_MACS = 2 * (3 * 8 * 9) * (16 * 16)
GROUPED_MACS = 2 * (2 * 8 * 9) * (8 * 8)
LINEAR_MACS = 5 * 7 * 11
BMM_MACS = 4 * 6 * 5 * 3
ATTENTION_MACS = 2 * (2 * 3) * (10 * 12) * 4


def conv(device: str) -> Callable[[], object]:
    layer = nn.Conv2d(3, 8, 3, padding=1, device=device)
    x = torch.zeros(2, 3, 16, 16, device=device)
    return lambda: layer(x)


def grouped_conv(device: str) -> Callable[[], object]:
    layer = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=2, device=device)
    x = torch.zeros(2, 4, 16, 16, device=device)
    return lambda: layer(x)


def linear(device: str) -> Callable[[], object]:
    layer = nn.Linear(7, 11, device=device)
    x = torch.zeros(5, 7, device=device)
    return lambda: layer(x)


def bmm(device: str) -> Callable[[], object]:
    a, b = torch.zeros(4, 6, 5, device=device), torch.zeros(4, 5, 3, device=device)
    return lambda: a @ b


def attention(device: str) -> Callable[[], object]:
    q, k, v = (torch.zeros(2, 3, n, 4, device=device) for n in (10, 12, 12))
    return lambda: F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("make", "macs"),
    [
        (conv, CONV_MACS),
        (grouped_conv, GROUPED_MACS),
        (linear, LINEAR_MACS),
        (bmm, BMM_MACS),
        (attention, ATTENTION_MACS),
    ],
)
def test_forward_counts(
    make: Callable[[str], Callable[[], object]], macs: int, device: str, *, inference: bool
) -> None:
    call = make(device)
    with torch.inference_mode(inference):
        assert count_cost(call) == ComputeCost(macs=macs, flops=2 * macs)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_backward_costs_twice_the_forward_pass(device: str) -> None:
    q, k, v = (torch.zeros(2, 3, n, 4, device=device, requires_grad=True) for n in (10, 12, 12))
    layer = nn.Linear(4, 4, device=device)

    def step() -> None:
        layer(F.scaled_dot_product_attention(q, k, v)).sum().backward()

    forward = ATTENTION_MACS + 2 * 3 * 10 * 4 * 4
    assert count_cost(step).macs == 3 * forward


def test_first_layer_owes_no_gradient_to_its_input() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    x = torch.zeros(2, 3, 16, 16)
    assert count_cost(lambda: layer(x).sum().backward()).macs == 2 * CONV_MACS


def test_calls_add_up_and_nothing_costs_nothing() -> None:
    call = linear("cpu")
    assert count_cost(lambda: (call(), call())).macs == 2 * LINEAR_MACS
    assert count_cost(lambda: None) == ComputeCost(macs=0, flops=0)
