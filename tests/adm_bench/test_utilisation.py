"""How well a device is used: the arithmetic of it, on a GPU that is made up."""

import pytest
import torch

from adm_bench import utilisation
from adm_bench.compute import network_cost
from adm_bench.utilisation import GIB, RECENT_STEPS, Gauge
from generators.adm.presets import preset


def test_utilisation_is_of_the_peak_of_all_devices_over_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = [5 * GIB]  # the product's
    monkeypatch.setattr(utilisation, "measure_matmul_flops", lambda device, dtype: {torch.bfloat16: 1e9}[dtype])  # noqa: ARG005
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: memory.clear())  # noqa: ARG005
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: sum(memory))  # noqa: ARG005
    config = preset("digits8").config
    gauge = Gauge(config, torch.device("cuda"), "bf16", 4)
    memory.append(3 * GIB)
    gauge.add(64, 1000.0)  # a step that compiles, long forgotten
    for _ in range(RECENT_STEPS):
        gauge.add(64, 0.5)
    cost = network_cost(config)
    assert 2.5 * cost.forward_flops_per_image < cost.training_flops_per_image < 3 * cost.forward_flops_per_image
    share = 128 * cost.training_flops_per_image / 4e9
    assert gauge.values == pytest.approx({"images_per_sec": 128, "memory_gib": 3, "utilisation": share})
    assert gauge.note == f"3.0 GiB, {share:.0%} of peak"


def test_a_cpu_has_no_peak() -> None:
    gauge = Gauge(preset("digits8").config, torch.device("cpu"), "fp32", 1)
    gauge.add(32, 0.25)
    assert gauge.values == {"images_per_sec": 128}
    assert not gauge.note
