"""Where weights come from: fetched from a server or file, given, or named in the environment."""

import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adm_bench import weights_store
from adm_bench.errors import InputError
from adm_bench.weights_store import PUBLISHED, PublishedWeights, fetch, find_weights, home

CONTENT = bytes(range(256)) * 6_250
FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
Refuse = Callable[..., str]


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder; `/short/NAME` promises more bytes than come, `/parts/NAME` knows ranges, `/wrong/NAME` badly."""

    asked: ClassVar[list[str | None]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.asked.append(asked)
        kind, _, name = self.path[1:].rpartition("/")
        if kind in ("parts", "wrong") and asked is not None:
            self.send_part(Path(self.directory, name).read_bytes(), int(asked[len("bytes=") : -1]), lie=kind == "wrong")
        elif kind in ("parts", "wrong"):
            self.path = f"/{name}"
            super().do_GET()
        elif self.path.startswith("/short/"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
        else:
            super().do_GET()

    def send_part(self, content: bytes, start: int, *, lie: bool) -> None:
        part = content[start:]
        self.send_response(206 if part else 416)
        if part:
            self.send_header("Content-Range", f"bytes {0 if lie else start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Quiet.asked.clear()
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / FILE_NAME).write_bytes(CONTENT)
    (folder / "other.pth").write_bytes(CONTENT[:-1] + b"!")
    (folder / "longer.pth").write_bytes(CONTENT * 2)
    (folder / "shorter.pth").write_bytes(CONTENT[:-1])
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")] + ["ADM_BENCH_INCEPTION"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADM_BENCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """Publish CONTENT in place of the Inception network's weights."""
    small = replace(
        PUBLISHED["inception"],
        url=f"{server}/{FILE_NAME}",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        num_bytes=len(CONTENT),
    )
    monkeypatch.setattr(weights_store, "PUBLISHED", {"inception": small})


@pytest.mark.parametrize("known", PUBLISHED.values(), ids=PUBLISHED)
def test_what_is_published_is_stated_consistently(known: PublishedWeights) -> None:
    assert known.path.name == known.url.rpartition("/")[2]
    assert re.fullmatch("[0-9a-f]{64}", known.sha256)
    assert known.url.startswith("https://")


def test_the_inception_file_s_name_holds_its_digest() -> None:
    known = PUBLISHED["inception"]
    assert known.path.name == FILE_NAME
    assert known.sha256.startswith(known.path.stem.rpartition("-")[2])


def test_home_is_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert home() == tmp_path / "home"
    monkeypatch.delenv("ADM_BENCH_HOME")
    assert home() == Path("~/.cache/adm-bench").expanduser()


@pytest.mark.usefixtures("_small")
def test_fetches_once(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = run("fetch", "inception").output
    path = tmp_path / "home" / "weights" / FILE_NAME
    assert path.read_bytes() == CONTENT
    assert f"{path}: weights 'inception'" in output
    assert "Apache-2.0" in output
    assert find_weights("inception") == path
    monkeypatch.setattr(weights_store.urllib.request, "urlopen", lambda *_, **__: pytest.fail("it is here already"))
    run("fetch", "inception")


@pytest.mark.usefixtures("_small")
def test_a_damaged_file_is_fetched_anew(tmp_path: Path) -> None:
    path = tmp_path / "home" / "weights" / FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:10])
    assert fetch("inception") == path
    assert path.read_bytes() == CONTENT


@pytest.mark.usefixtures("_small")
def test_print_urls_opens_no_connection(run: Callable[..., Any], server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_store.urllib.request, "urlopen", lambda *_, **__: pytest.fail("nothing is to be got"))
    result = run("fetch", "inception", "--print-urls")
    assert result.stdout == f"{server}/{FILE_NAME}\n"
    for stated in ("Apache-2.0", weights_store.PUBLISHED["inception"].sha256, str(home())):
        assert stated in result.stderr
    assert not home().exists()


@pytest.mark.usefixtures("_small")
def test_takes_a_file(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "brought.pth").write_bytes(CONTENT)
    run("fetch", "inception", "--from", tmp_path / "brought.pth")
    assert find_weights("inception").read_bytes() == CONTENT


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/other.pth", "it is another file, or damaged"),
        ("/longer.pth", "is longer than the 1,600,000 bytes expected"),
        ("/shorter.pth", "ended after 1,599,999 of 1,600,000 bytes"),
        ("/short/x.pth", "ended after 1,000 of 1,600,000 bytes"),
        ("/nowhere.pth", "cannot be fetched (File not found)"),
    ],
)
def test_refuses_anything_else(source: str, expected: str, refuse: Refuse, server: str) -> None:
    kept = home() / "weights" / FILE_NAME
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"what was there")
    assert expected in refuse("fetch", "inception", "--from", server + source)
    assert kept.read_bytes() == b"what was there"
    left = [path.stat().st_size for path in kept.parent.iterdir() if path.suffix == ".partial"]
    assert left == ([1000] if "/short/" in source else [1_599_999] if "/shorter" in source else [])


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("source", "asked"),
    [
        (f"/parts/{FILE_NAME}", ["bytes=1000-"]),
        (f"/{FILE_NAME}", ["bytes=1000-"]),  # this one sends everything, whatever is asked for
        (f"/wrong/{FILE_NAME}", ["bytes=1000-", None]),
    ],
)
def test_a_download_that_broke_off_goes_on(
    source: str, asked: list[str | None], run: Callable[..., Any], refuse: Refuse, server: str
) -> None:
    kept = home() / "weights" / FILE_NAME
    line = refuse("fetch", "inception", "--from", f"{server}/short/x.pth")
    assert "ended after 1,000 of 1,600,000 bytes; the same command again goes on there" in line
    assert not kept.exists()
    Quiet.asked.clear()
    run("fetch", "inception", "--from", server + source)
    assert Quiet.asked == asked
    assert kept.read_bytes() == CONTENT
    assert [path.name for path in kept.parent.iterdir() if path.suffix == ".partial"] == []


class Silent(io.BytesIO):
    """A stream that ends in a timeout."""

    def read(self, _: int | None = None) -> bytes:
        if not (found := super().read(1000)):
            raise TimeoutError("timed out")
        return found


@pytest.mark.usefixtures("_small")
def test_a_server_that_falls_silent_leaves_what_came(
    refuse: Refuse, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(weights_store.urllib.request, "urlopen", lambda *_, **__: Silent(CONTENT[:3000]))
        patch.setattr(Silent, "status", 200, raising=False)
        line = refuse("fetch", "inception")
    assert "ended after 3,000 of 1,600,000 bytes (timed out); the same command again goes on there" in line
    run("fetch", "inception")
    assert find_weights("inception").read_bytes() == CONTENT


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("num_bytes", [1000, len(CONTENT), len(CONTENT) + 1])
def test_a_part_of_another_file_does_not_stay(
    num_bytes: int, run: Callable[..., Any], refuse: Refuse, server: str
) -> None:
    kept = home() / "weights" / FILE_NAME
    part = kept.with_name(f".{FILE_NAME}.partial")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"!" * num_bytes)
    source = f"{server}/parts/{FILE_NAME}"
    if num_bytes < len(CONTENT):
        line = refuse("fetch", "inception", "--from", source)
        assert "does not go on as the 1,000 bytes of an earlier attempt, which are removed now" in line
        assert not part.exists()
    run("fetch", "inception", "--from", source)
    assert kept.read_bytes() == CONTENT


@pytest.mark.usefixtures("_small")
def test_what_a_server_does_not_have_is_asked_for_from_the_beginning(refuse: Refuse, server: str) -> None:
    for asked in ([None], ["bytes=1599999-", None]):
        Quiet.asked.clear()
        refuse("fetch", "inception", "--from", f"{server}/parts/shorter.pth")
        assert Quiet.asked == asked


@pytest.mark.usefixtures("_small")
def test_a_file_that_is_too_short_leaves_nothing(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "brought.pth").write_bytes(CONTENT[:-1])
    line = refuse("fetch", "inception", "--from", tmp_path / "brought.pth")
    assert "ended after 1,599,999 of 1,600,000 bytes; try another source" in line
    assert [path.name for path in (home() / "weights").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inceptoin"], "unknown weights 'inceptoin'; did you mean 'inception'"),
        (["inception", "--from", "/nowhere.pth"], "/nowhere.pth: cannot be fetched (No such file or directory)"),
        (["inception", "--from", "http://127.0.0.1:9/x.pth"], "fetch it on another machine and pass --from FILE"),
        (["inception", "--from", "file:///etc/hostname"], "cannot be fetched"),
    ],
)
def test_bad_arguments(arguments: list[str], expected: str, refuse: Refuse) -> None:
    assert expected in refuse("fetch", *arguments)


def test_without_weights_it_says_how_to_get_them(refuse: Refuse, reference: Path, samples: Path) -> None:
    for features in ("inception", "clean"):
        line = refuse("evaluate", reference, samples, "--features", features, "--device", "cpu")
        for said in (
            "weights 'inception' are needed and not here",
            str(home() / "weights" / FILE_NAME),
            "`adm-bench fetch inception`",
            "--inception-weights PATH",
            "$ADM_BENCH_INCEPTION",
        ):
            assert said in line


def test_the_given_file_comes_first_then_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched = PUBLISHED["inception"].path
    for path in (fetched, tmp_path / "given.pth", tmp_path / "named.pth"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find_weights("inception") == fetched
    monkeypatch.setenv("ADM_BENCH_INCEPTION", str(tmp_path / "named.pth"))
    assert find_weights("inception") == tmp_path / "named.pth"
    assert find_weights("inception", tmp_path / "given.pth") == tmp_path / "given.pth"
    monkeypatch.setenv("ADM_BENCH_INCEPTION", "/nowhere.pth")
    with pytest.raises(InputError, match=r"\$ADM_BENCH_INCEPTION is /nowhere.pth: no such file"):
        find_weights("inception")


@pytest.mark.parametrize(
    ("features", "weights", "expected"),
    [
        ("inception", "/nowhere.pth", "--inception-weights is /nowhere.pth: no such file"),
        ("inception", "SAMPLES", "not readable, perhaps truncated"),
        ("digits", "SAMPLES", "features digits have weights of their own"),
    ],
)
def test_weights_that_do_not_serve(
    features: str, weights: str, expected: str, refuse: Refuse, reference: Path, samples: Path
) -> None:
    given = str(samples) if weights == "SAMPLES" else weights
    arguments = ("--features", features, "--inception-weights", given, "--device", "cpu")
    assert expected in refuse("evaluate", reference, samples, *arguments)
