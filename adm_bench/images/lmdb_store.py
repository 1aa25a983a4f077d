"""Images in an LMDB, as LSUN is given out: a key an image, its value the encoded file."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm_bench.errors import InputError
from adm_bench.images.decoding import UnreadableImageError
from adm_bench.images.stores import NoImagesError, Store, require_bounded

DATA_FILE = "data.mdb"
SUFFIXES = (".mdb", ".lmdb")


def is_lmdb(path: Path) -> bool:
    """Whether a path looks like an LMDB: a folder with a data.mdb in it, or a file of such a name."""
    return (path / DATA_FILE).is_file() or (path.is_file() and path.suffix in SUFFIXES)


class LmdbStore(Store):
    """`adm_bench.images.stores.Store` of an LMDB, opened for reading only, without a lock file.

    LMDB maps its file into memory and trusts it; a truncated one is refused, but do not open one that a stranger
    may have forged. InputError where the package lmdb is absent, or the file damaged or empty.
    """

    kind = "an LMDB"

    def __init__(self, root: Path) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise InputError(
                f"{root}: is an LMDB, and the package lmdb is absent: pip install 'adm-bench[lmdb]'"
            ) from error
        self.root = root
        file = root / DATA_FILE if root.is_dir() else root
        try:
            self.environment: Any = lmdb.open(
                str(root), subdir=root.is_dir(), readonly=True, lock=False, readahead=False, max_spare_txns=32
            )
            pages, page_bytes = self.environment.info()["last_pgno"] + 1, self.environment.stat()["psize"]
        except lmdb.Error as error:
            raise InputError(f"{root}: not a readable LMDB ({' '.join(str(error).split())}); copy it anew") from error
        if file.stat().st_size < pages * page_bytes:
            raise InputError(
                f"{root}: is truncated: {file.stat().st_size} bytes where {pages * page_bytes} are in use; copy it anew"
            )
        with self.environment.begin() as transaction:
            self.keys = list(transaction.cursor().iternext(keys=True, values=False))
        self.names = [os.fsdecode(key) for key in self.keys]
        if not self.names:
            raise NoImagesError(root)

    def read(self, index: int) -> bytes:
        """See `Store`."""
        with self.environment.begin(buffers=True) as transaction:
            content = transaction.get(self.keys[index])
            if content is None:
                raise UnreadableImageError("is no longer there; another program has changed the LMDB")
            require_bounded(len(content))
            return bytes(content)

    def read_beside(self, name: str) -> None:  # noqa: ARG002  the protocol's
        """See `Store`: LSUN has nothing but images."""
        return

    def sizes(self) -> NDArray[np.int64]:
        """See `Store`: known from the index, without a look at the images."""
        with self.environment.begin(buffers=True) as transaction:
            return np.array([len(content) for _, content in transaction.cursor()], np.int64)

    def unnamed(self) -> list[str]:
        """See `Store`: every key is an image's, whatever its name."""
        return []

    def stamp(self) -> str:
        """See `Store`: the keys, and the number of the last change."""
        total = hashlib.sha256(str(self.environment.info()["last_txnid"]).encode())
        for key in self.keys:
            total.update(key + b"\0")
        return total.hexdigest()
