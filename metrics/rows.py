"""Rows of features kept one after another: in memory up to a budget, beyond it in a file without a name."""

import tempfile
import weakref
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

FloatRows = NDArray[np.float32]
"""One row an image, one column a feature."""


@dataclass(kw_only=True)
class MemoryBudget:
    """Bytes that several `KeptRows` may hold in memory together."""

    bytes_left: float = float("inf")

    def take(self, num_bytes: int) -> bool:
        """Whether there was room; if so, it is taken."""
        if num_bytes > self.bytes_left:
            return False
        self.bytes_left -= num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """Room that is no longer needed."""
        self.bytes_left += num_bytes


class KeptRows:
    """Float32 rows [n, D] that grow batch by batch.

    Once the budget is spent they lie in a temporary file (in $TMPDIR), mapped into memory when they are read and gone
    with the process, however it ends.
    """

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        self.budget = budget or MemoryBudget()
        self._chunks: list[FloatRows] = []
        self._file: IO[bytes] | None = None
        self._shape = (0, 0)

    def __len__(self) -> int:
        """Number of rows."""
        return self._shape[0]

    @property
    def on_disk(self) -> bool:
        """Whether they outgrew the budget."""
        return self._file is not None

    def append(self, rows: FloatRows) -> None:
        """Add rows [B, D]; they are copied. ValueError where D is another than before."""
        if len(self) and rows.shape[1] != self._shape[1]:
            raise ValueError(f"found features of shape {rows.shape}; expected [batch, {self._shape[1]}]")
        self._shape = (len(self) + len(rows), rows.shape[1])
        if self._file is None and not self.budget.take(rows.nbytes):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the rows
            weakref.finalize(self, self._file.close)
            for chunk in self._chunks:
                self._file.write(chunk.tobytes())
                self.budget.give_back(chunk.nbytes)
            self._chunks = []
        if self._file is None:
            self._chunks.append(rows.astype(np.float32, copy=True))
        else:
            self._file.write(rows.astype(np.float32).tobytes())

    def array(self) -> FloatRows:
        """All rows [n, D], to be read only."""
        if self._file is not None:
            self._file.flush()
            return np.memmap(self._file, np.float32, mode="r", shape=self._shape)
        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0] if self._chunks else np.empty(self._shape, np.float32)
