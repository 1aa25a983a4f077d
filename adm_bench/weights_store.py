"""Weights that others made and feature networks need: where they are looked for, and how `fetch` gets them.

The only code that opens a network connection, and only when asked to. Files lie in `$ADM_BENCH_HOME/weights`,
`~/.cache/adm-bench/weights` unless that variable is set.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adm_bench import progress
from adm_bench.errors import InputError
from adm_bench.files import atomic_path, check_writable, file_sha256, sole_user
from generators.configuration import unknown_name

HOME_VARIABLE = "ADM_BENCH_HOME"
DEFAULT_HOME = "~/.cache/adm-bench"
CHUNK_BYTES = 1 << 20
TIMEOUT_SEC = 60.0
"""Without a byte from the server."""


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A file that others published, and how to know it."""

    url: str
    licence: str
    sha256: str
    num_bytes: int
    variable: str
    """Environment variable that names the file elsewhere."""
    option: str
    """Option of the command line that does."""

    @property
    def path(self) -> Path:
        """Where `fetch` puts it."""
        return home() / "weights" / self.url.rpartition("/")[2]


PUBLISHED: Mapping[str, PublishedWeights] = {
    # torch-fidelity's conversion of the graph that OpenAI's evaluator downloads. Its name carries the digest's
    # first eight digits; digest and size are as many public records of this file give them.
    "inception": PublishedWeights(
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        licence="Apache-2.0, as TensorFlow's model that it was converted from",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        num_bytes=95_628_359,
        variable="ADM_BENCH_INCEPTION",
        option="--inception-weights",
    ),
    # Meta's own file. Digest and size are as many public records of it give them; Meta states neither.
    "dinov2": PublishedWeights(
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        licence="Apache-2.0",
        sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        num_bytes=1_217_586_395,
        variable="ADM_BENCH_DINOV2",
        option="--feature-weights",
    ),
}


def home() -> Path:
    """The folder for what is kept between runs."""
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser()


def published(name: str) -> PublishedWeights:
    """Published weights by name; InputError where there are none of that name."""
    if name not in PUBLISHED:
        raise InputError(unknown_name("weights", name, PUBLISHED))
    return PUBLISHED[name]


def find_weights(name: str, given: Path | None = None) -> Path:
    """The file to load: the given one, the environment's, or the fetched one; InputError says how to get it."""
    known = published(name)
    from_environment = os.environ.get(known.variable)
    for origin, path in ((known.option, given), (f"${known.variable}", from_environment and Path(from_environment))):
        if path:
            if not Path(path).is_file():
                raise InputError(f"{origin} is {path}: no such file; expected weights {name!r}")
            return Path(path)
    if not known.path.is_file():
        raise InputError(
            f"weights {name!r} are needed and not here ({known.path}): run `adm-bench fetch {name}`, or give the file "
            f"with {known.option} PATH or in ${known.variable}"
        )
    return known.path


def fetch(name: str, source: str | None = None) -> Path:
    """Get published weights from a file or URL, their own URL by default, unless they are here already.

    Nothing takes the place of the file before size and SHA-256 are right; InputError where they are not.
    """
    known = published(name)
    check_writable(known.path.parent)
    with sole_user(known.path.parent):
        if known.path.is_file() and file_sha256(known.path) == known.sha256:
            return known.path
        with atomic_path(known.path) as temporary, _opened(source or known.url) as stream:
            _copy_verified(stream, temporary, known, source or known.url)
    return known.path


def _copy_verified(stream: BinaryIO, path: Path, known: PublishedWeights, source: str) -> None:
    digest, copied = hashlib.sha256(), 0
    with path.open("wb") as out, progress.stage(known.path.name, known.num_bytes, "bytes") as advance:
        while chunk := stream.read(CHUNK_BYTES):
            copied += len(chunk)
            if copied > known.num_bytes:
                raise InputError(f"{source}: is longer than the {known.num_bytes:,} bytes expected; try another source")
            digest.update(chunk)
            out.write(chunk)
            advance(len(chunk))
    if copied < known.num_bytes:
        raise InputError(f"{source}: ended after {copied:,} of {known.num_bytes:,} bytes; try again")
    if digest.hexdigest() != known.sha256:
        raise InputError(
            f"{source}: has sha256 {digest.hexdigest()}, expected {known.sha256}: it is another file, or damaged"
        )


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    """A file, or what a URL answers, as a stream; InputError, with the way out, where there is none."""
    is_url = source.startswith(("http://", "https://"))
    try:
        if is_url:
            with urllib.request.urlopen(source, timeout=TIMEOUT_SEC) as answer:  # noqa: S310  scheme as above
                yield answer
        else:
            with Path(source).open("rb") as file:
                yield file
    except (OSError, http.client.HTTPException) as error:  # OSError: also urllib's URLError, and timeouts
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        way_out = "; fetch it on another machine and pass --from FILE" if is_url else ""
        raise InputError(f"{source}: cannot be fetched ({reason}){way_out}") from error
