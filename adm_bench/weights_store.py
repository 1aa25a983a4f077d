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
from adm_bench.files import check_writable, file_sha256, resumable_path, sole_user
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

    A download that broke off goes on where it did, if the server can send a part of a file. Nothing takes the place of
    the file before size and SHA-256 are right; InputError where they are not.
    """
    known = published(name)
    check_writable(known.path.parent)
    with sole_user(known.path.parent):
        if known.path.is_file() and file_sha256(known.path) == known.sha256:
            return known.path
        with resumable_path(known.path) as partial:
            _complete(partial, known, source or known.url)
    return known.path


def _complete(path: Path, known: PublishedWeights, source: str) -> None:
    """Write what a source has beyond the bytes that `path` holds; they stay only where more may follow."""
    kept = path.stat().st_size if _is_url(source) and path.exists() else 0
    with _opened(source, kept if kept < known.num_bytes else 0) as (stream, start):
        digest, copied, broken = _copy(stream, start, path, known)
    too_short = f"{source}: ended after {copied:,} of {known.num_bytes:,} bytes{broken}"
    if copied < known.num_bytes and _is_url(source):
        raise InputError(f"{too_short}; the same command again goes on there")
    if (copied, digest) == (known.num_bytes, known.sha256):
        return
    path.unlink()
    if copied > known.num_bytes:
        raise InputError(f"{source}: is longer than the {known.num_bytes:,} bytes expected; try another source")
    if copied < known.num_bytes:
        raise InputError(f"{too_short}; try another source")
    if start:
        raise InputError(
            f"{source}: does not go on as the {start:,} bytes of an earlier attempt, which are removed now: with them "
            f"the sha256 is {digest}, expected {known.sha256}; try again"
        )
    raise InputError(f"{source}: has sha256 {digest}, expected {known.sha256}: it is another file, or damaged")


def _copy(stream: BinaryIO, start: int, path: Path, known: PublishedWeights) -> tuple[str, int, str]:
    """Append a stream to the first `start` bytes of a file, which is cut there, to a chunk more than expected at most.

    Return the SHA-256 of the whole, its length, and in brackets what broke the stream off, if anything did.
    """
    digest, copied = hashlib.sha256(), start
    path.touch()
    with path.open("r+b") as file, progress.stage(known.path.name, known.num_bytes, "bytes", start) as advance:
        file.truncate(start)
        while content := file.read(CHUNK_BYTES):
            digest.update(content)
        while copied <= known.num_bytes:
            try:
                chunk = stream.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                return digest.hexdigest(), copied, f" ({_reason(error)})"
            if not chunk:
                break
            copied += len(chunk)
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    return digest.hexdigest(), copied, ""


@contextmanager
def _opened(source: str, start: int = 0) -> Iterator[tuple[BinaryIO, int]]:
    """A file, or what a URL answers, as a stream with the place that it begins at: `start`, or 0 if it must be.

    InputError, with the way out, where there is none.
    """
    try:
        stream, begins = _request(source, start) if _is_url(source) else (Path(source).open("rb"), 0)  # noqa: SIM115  below
    except (OSError, http.client.HTTPException) as error:  # OSError: also urllib's URLError, and timeouts
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        way_out = "; fetch it on another machine and pass --from FILE" if _is_url(source) else ""
        raise InputError(f"{source}: cannot be fetched ({_reason(error)}){way_out}") from error
    with stream:
        yield stream, begins


def _request(url: str, start: int) -> tuple[BinaryIO, int]:
    """Ask for a URL from byte `start` on (RFC 9110, section 14), and for all of it where that is not what comes."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310  checked
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SEC)  # noqa: S310  checked by `_is_url`
    except urllib.error.HTTPError as error:
        if not start or error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        return _request(url, 0)
    if answer.status != http.client.PARTIAL_CONTENT:
        return answer, 0
    if start and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return answer, start
    answer.close()
    if not start:
        raise http.client.HTTPException("it answers with a part of the file that nobody asked for")
    return _request(url, 0)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _reason(error: Exception) -> object:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or error
