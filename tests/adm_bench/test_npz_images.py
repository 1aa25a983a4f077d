"""Images in npz files: what is refused, and why."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from adm_bench.errors import InputError
from adm_bench.images.npz import NpzFile
from adm_bench.images.sources import open_image_set


def test_shards_of_two_sizes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "b.npz", np.zeros((2, 4, 5, 3), np.uint8))
    with pytest.raises(InputError, match=r"b.npz: images are 4 x 5, but those of .*a.npz are 4 x 4"):
        open_image_set(tmp_path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 48, dtype=np.float32), "images are float32 .* with values from 0 to 1; expected uint8"),
        (np.linspace(-1, 1, 48), "float64 .* with values from -1 to 1"),
        (np.arange(48) * 10, "int64 .* with values from 0 to 470"),
        (np.full(48, np.nan), r"float64 \(1, 4, 4, 3\); expected uint8"),
    ],
)
def test_images_that_are_not_bytes_are_refused_with_their_values(
    values: np.ndarray, expected: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "set.npz", values.reshape(1, 4, 4, 3))
    with pytest.raises(InputError, match=expected):
        open_image_set(tmp_path / "set.npz")


def test_fortran_order_is_refused_for_images_and_read_for_statistics(tmp_path: Path) -> None:
    sigma = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.savez(tmp_path / "set.npz", arr_0=np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)), sigma=sigma)
    with pytest.raises(InputError, match="Fortran order"):
        open_image_set(tmp_path / "set.npz")
    found = NpzFile(tmp_path / "set.npz").load("sigma")
    np.testing.assert_array_equal(found, sigma)


def npy(values: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("twin", ["arr_0.npy", "arr_0"])
def test_a_name_that_stands_twice_is_refused(twin: str, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", npy(np.zeros((2, 4, 4, 3), np.uint8)))
    assert len(open_image_set(path)) == 2
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(twin, npy(np.ones((3, 4, 4, 3), np.uint8)))
    with pytest.raises(InputError, match=r"set.npz: holds 2 members named arr_0; .* save it anew with numpy.savez"):
        open_image_set(path)
