"""Every short result and passing error that a system call may have, made to happen by shim.c: not a byte is lost."""

import errno
import os
import re
import socket
import struct
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from support import HANG, PROGRAM, ROOT, Listener, connecting, read_exactly, summary
from support.exchange import KINDS, Ends, Shape, Way, commanding, exchange

SEEDS = range(1, 6)
UP, DOWN = Way(1_300_001), Way(1_200_003)
# Readers that stall at first, so that bytes wait in the pump: see STALL_MS in _splice.pyx.
SLOW_UP, SLOW_DOWN = (Way(way.size, reads=Shape([(50_000, 600_000)])) for way in (UP, DOWN))

CALLS = (
    "splice sendfile read readv write poll poll_one recv F_SETPIPE_SZ F_GETPIPE_SZ SO_SNDBUFFORCE pipe2 socketpair"
    " pthread_create"
)
COUNTS = "called shortened interrupted again failed"  # both in the order of shim.c


class Shim:
    """The shim, built, for one child at a time."""

    def __init__(self, library: Path, counts: Path) -> None:
        self._library, self._counts = library, counts
        counts.write_bytes(bytes(8 * len(CALLS.split()) * len(COUNTS.split())))

    def environment(self, seed: int = 0, fail: Sequence[str] = ()) -> dict[str, str]:
        """What loads it: `seed` for random trouble, and ``CALL=ERRNO@n`` for failure from that call's n-th time on."""
        rules = [re.sub("(?<==)[A-Z]+", lambda name: str(getattr(errno, name[0])), rule) for rule in fail]
        return {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "SHIM_COUNTS": str(self._counts),
            "SHIM_SEED": str(seed),
            "SHIM_FAIL": ",".join(rules),
        }

    def count(self, call: str, what: str) -> int:
        """How often that happened to the child."""
        names = COUNTS.split()
        row = CALLS.split().index(call)
        numbers = list(struct.iter_unpack(f"={len(names)}Q", self._counts.read_bytes()))[row]
        return int(numbers[names.index(what)])


@pytest.fixture(scope="session")
def shim_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, built."""
    if PROGRAM:
        pytest.skip("by design: LD_PRELOAD puts nothing into a static program")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = ROOT / "tests" / "support" / "shim.c"
    flags = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", library, source, "-ldl"], check=True, timeout=HANG)
    return library


@pytest.fixture
def shim(shim_library: Path, tmp_path: Path) -> Shim:
    """The shim, with its counters at zero."""
    return Shim(shim_library, tmp_path / "counts")


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Ends:
    """stdin and stdout of a kind."""
    return Ends(request.param)


each_kind = pytest.mark.parametrize("ends", KINDS, indirect=True)


def check(listener: Listener, ends: Ends, engine: str, env: dict[str, str], up: Way = UP, down: Way = DOWN) -> None:
    """Both payloads come through, and the command ends well."""
    with commanding(listener, ends, engine, env=env) as child:
        assert exchange(ends, listener.accept(), up, down) == (up.sum, down.sum)
        assert (child.wait(HANG), child.stderr and child.stderr.read()) == (0, b"")


def relay_file(listener: Listener, engine: str, folder: Path, env: dict[str, str]) -> bytes:
    """What arrives of a file that is stdin."""
    path = folder / "input"
    path.write_bytes(UP.payload)
    options = ["--linger", "0"]
    with path.open("rb") as file, connecting(listener.uds, 5000, *options, engine=engine, stdin=file, env=env) as child:
        with listener.accept() as far:
            arrived = b"".join(iter(partial(far.recv, 1 << 20), b""))
        assert child.wait(HANG) == 0
        return arrived


@each_kind
@pytest.mark.parametrize("seed", SEEDS)
def test_short_results_and_interruptions_anywhere_cost_no_byte(
    listener: Listener, shim: Shim, engine: str, ends: Ends, seed: int
) -> None:
    check(listener, ends, engine, shim.environment(seed))
    calls = ["splice"] if engine == "splice" else ["readv", "write"]
    for call in calls:
        for what in ("shortened", "interrupted", "again"):
            assert shim.count(call, what) > 0
    assert shim.count("poll", "interrupted") > 0


@each_kind
def test_short_results_while_the_readers_stall_cost_no_byte(
    listener: Listener, shim: Shim, engine: str, ends: Ends
) -> None:
    check(listener, ends, engine, shim.environment(1), SLOW_UP, SLOW_DOWN)


@pytest.mark.parametrize("seed", SEEDS)
def test_payload_behind_the_handshake_survives_short_results(
    listener: Listener, shim: Shim, engine: str, seed: int
) -> None:
    with connecting(listener.uds, 5000, engine=engine, env=shim.environment(seed)) as child:
        listener.accept(b"OK 1073741824\npayload").close()
        assert child.stdout is not None
        assert read_exactly(child.stdout.fileno(), 100) == b"payload"
        assert child.wait(HANG) == 0
    assert shim.count("recv", "shortened") > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_file_survives_short_results_of_sendfile(
    listener: Listener, shim: Shim, engine: str, seed: int, tmp_path: Path
) -> None:
    assert summary(relay_file(listener, engine, tmp_path, shim.environment(seed))) == UP.sum
    assert engine == "copy" or shim.count("sendfile", "shortened") > 0


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("error", ["EINVAL", "ENOSYS", "EPERM"])
def test_a_file_that_sendfile_refuses_is_copied(
    listener: Listener, shim: Shim, tmp_path: Path, error: str, number: int
) -> None:
    # Short results, for the refusal to come in the middle of the file.
    env = shim.environment(1, [f"sendfile={error}@{number}"])
    assert summary(relay_file(listener, "splice", tmp_path, env)) == UP.sum
    assert shim.count("sendfile", "failed") == 1


@each_kind
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 13, 20])
@pytest.mark.parametrize("error", ["EINVAL", "ENOSYS", "EPERM"])
def test_a_splice_that_is_refused_becomes_a_copy_and_costs_no_byte(
    listener: Listener, shim: Shim, ends: Ends, error: str, number: int
) -> None:
    check(listener, ends, "splice", shim.environment(1, [f"splice={error}@{number}"]))
    reached = shim.count("splice", "called") >= number  # or the chunks were so large that less calls did
    assert (shim.count("splice", "failed") in (1, 2)) == reached  # a direction asks no second time
    assert (shim.count("readv", "called") > 0) == reached


@pytest.mark.parametrize("number", range(2, 9))
def test_bytes_in_the_pipe_between_two_sockets_survive_the_change_to_copy(
    listener: Listener, shim: Shim, tmp_path: Path, number: int
) -> None:
    # One direction alone and short results: from the second call on, bytes lie in the pipe at almost any time.
    mine, theirs = socket.socketpair()
    env = shim.environment(1, [f"splice=EINVAL@{number}"])
    with mine, connecting(listener.uds, 5000, stdin=subprocess.DEVNULL, stdout=theirs, env=env) as child:
        theirs.close()
        with listener.accept() as far:
            far.sendall(DOWN.payload[:100_000])
        assert read_exactly(mine.fileno(), 200_000) == DOWN.payload[:100_000]
        assert child.wait(HANG) == 0


@each_kind
def test_bytes_held_for_a_stalled_reader_survive_the_change_to_copy(listener: Listener, shim: Shim, ends: Ends) -> None:
    check(listener, ends, "splice", shim.environment(fail=["splice=ENOSYS@9"]), SLOW_UP, SLOW_DOWN)


@each_kind
@pytest.mark.parametrize(
    "fail",
    [
        ["F_SETPIPE_SZ=EPERM@1"],
        ["F_SETPIPE_SZ=EPERM@1", "F_GETPIPE_SZ=EINVAL@1"],
        ["SO_SNDBUFFORCE=EPERM@1"],
    ],
    ids=" ".join,
)
def test_buffers_that_cannot_be_raised_do_no_harm(
    listener: Listener, shim: Shim, engine: str, ends: Ends, fail: list[str]
) -> None:
    check(listener, ends, engine, shim.environment(fail=fail))
    assert engine == "copy" or any(shim.count(rule.partition("=")[0], "failed") for rule in fail)


@pytest.mark.parametrize("ends", ["socketpair"], indirect=True)
@pytest.mark.parametrize("number", [1, 2])
def test_two_sockets_are_copied_where_there_is_no_pipe_for_between(
    listener: Listener, shim: Shim, ends: Ends, number: int
) -> None:
    check(listener, ends, "splice", shim.environment(fail=[f"pipe2=EMFILE@{number}"]))
    assert shim.count("readv", "called") > 0


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        (["pthread_create=EAGAIN@1"], b"fastvsock: cannot relay: can't start new thread\n"),
        (["socketpair=EMFILE@1"], b"fastvsock: cannot open a descriptor for the relay: Too many open files\n"),
    ],
    ids=["no thread", "no descriptor"],
)
def test_what_a_relay_cannot_do_without_is_reported(
    listener: Listener, shim: Shim, engine: str, fail: list[str], sentence: bytes
) -> None:
    with connecting(listener.uds, 5000, engine=engine, env=shim.environment(fail=fail)) as child:
        with listener.accept() as far:
            assert far.recv(1) == b""
        assert (child.wait(HANG), child.stderr and child.stderr.read()) == (1, sentence)
