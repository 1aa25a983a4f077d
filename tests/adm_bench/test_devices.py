"""What the choice of a CPU sets for the process."""

import os
import platform
import subprocess
import sys

import pytest

MEASURE = """
import resource, torch
from adm_bench.devices import choose_device
choose_device("auto")
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    x = torch.ones(1, 16, 512, 512)
    for _ in range(4):
        x = torch.nn.functional.avg_pool2d(torch.cat([x, x], dim=1)[:, 8:24] + x, 3, stride=1, padding=1)
for _ in range(5):
    step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def page_faults(**variables: str) -> int:
    """The fresh pages that five steps over tensors of 16 and 32 MiB take."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_used_again_unless_the_user_has_set_the_allocator() -> None:
    kept, returned = page_faults(), page_faults(MALLOC_MMAP_MAX_="65536")
    assert kept < returned / 10
