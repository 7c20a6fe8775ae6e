"""The regression that this program was asked for to end: `kubectl exec` and `kubectl cp` broke each other.

20 execs and 20 copies go through one VM at once. Each says that it is there and then waits to open a FIFO in the guest,
which gets a writer only when all forty have said so: if one of them had to wait for another to end, none would ever go
on. (A FIFO, since forty shells that look for a file ten times a second are all that an emulated guest can do.)

The last test goes the old scripts' way, one socat on a global port for all, without `fork`: it cannot come through.
"""

import hashlib
import io
import os
import random
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support import ENGINES, HANG, Child, started, write_all
from support.services import closed_port, eventually, serving
from support.ssh import DROPBEAR, Guest, need, output, shell_guest, transport, until_status

REAL_UDS = os.environ.get("FASTVSOCK_TEST_UDS")
REAL_KEY = os.environ.get("FASTVSOCK_TEST_KEY")
EACH = 20
SIZE = 30_000 if REAL_UDS else 1_000_000
AT_LOGIN = 4 if REAL_UDS else 2 * EACH  # dropbear, where it listens itself, turns away a fifth that has yet to log in
PATIENCE = 5 * HANG if REAL_UDS else HANG  # inside the harness everything is emulated, and a session takes seconds
HERE = b"here\n"

pytestmark = pytest.mark.timeout(6 * HANG)

Way = list[str]  # a client's command line, up to where the command goes


@pytest.fixture(params=ENGINES[:1] if REAL_UDS else ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; in the harness, where a test takes a minute, the one that serves by default."""
    return str(request.param)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """The guest: real where there is one, else an ssh server behind the emulator."""
    if not REAL_UDS:
        with shell_guest(tmp_path_factory.mktemp("guest")) as guest:
            yield guest
        return
    need("dbclient")
    if not REAL_KEY:
        pytest.skip("by design: FASTVSOCK_TEST_KEY does not say with which key to log in")
    yield Guest(REAL_UDS, "root", REAL_KEY)


class Session:
    """One exec or one copy: a client, what it is given on stdin, and what has to come out of it.

    Where nothing is given, stdin stays open until all output has come.
    """

    def __init__(self, way: Way, script: str, stdin: bytes, status: int, expected: Callable[[bytes], bool]) -> None:
        self._words, self._stdin, self._status, self._expected = [*way, until_status(script)], stdin, status, expected

    def run(self, entrance: threading.Semaphore, arrived: list[object]) -> str:
        """What went wrong; nothing where it came through, right to the byte."""
        with ExitStack() as running:
            with entrance:
                client = running.enter_context(started(self._words))
                said = self._until_here(client)
            if not said.endswith(HERE):
                return f"never got there: {said!r}"
            arrived.append(self)
            feeder = threading.Thread(target=self._feed, args=(client,))
            feeder.start()
            out = output(client, self._status)
            feeder.join()
            client.stdin.close()
            if out is None or not self._expected(out):
                return f"wrong output: {client.communicate()[1]!r}"
            status = client.wait(PATIENCE)
            return "" if status == self._status else f"status {status} instead of {self._status}"

    def _feed(self, client: Child) -> None:
        if not self._stdin:
            return
        try:
            write_all(client.stdin.fileno(), self._stdin)
        except BrokenPipeError:
            pass
        client.stdin.close()

    def _until_here(self, client: Child) -> bytes:
        """What stderr says, where dbclient has words of its own, up to the guest's."""
        said = b""
        while not said.endswith(HERE) and (line := client.stderr.readline()):
            said += line
        return said


def sessions(way: Way, folder: str) -> list[Session]:
    """20 execs, 10 copies in and 10 out, each with data of its own."""
    wait = f"echo here >&2; : <{folder}/go; "
    found = []
    for number in range(EACH):
        typed, status = b"typed %d\n" % number, number + 1
        script = wait + f"cat; (exit {status})"
        found.append(Session(way, script, typed, status, typed.__eq__))
    for number in range(EACH):
        payload = random.Random(number).randbytes(SIZE + number)
        if number % 2:
            place = f"{folder}/{number}"
            script = wait + f"mkdir {place} && tar xf - -C {place} && sha256sum <{place}/file"
            expected = hashlib.sha256(payload).hexdigest().encode() + b"  -\n"
            found.append(Session(way, script, tarred(payload), 0, expected.__eq__))
        else:
            script = wait + f"tar cf - -C {folder} source"
            found.append(Session(way, script, b"", 0, lambda out: untarred(out) == random.Random(-1).randbytes(SIZE)))
    return found


def tarred(payload: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = len(payload)
        tar.addfile(member, io.BytesIO(payload))
    return archive.getvalue()


def untarred(archive: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile("source")
        return member.read() if member else b""


def in_guest(way: Way, script: str, stdin: bytes = b"") -> None:
    done = subprocess.run([*way, script], input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr.decode()


@contextmanager
def let_go(helper: Way, folder: str) -> Iterator[None]:
    """Have a writer for the FIFO, which lets all go on, for as long as the block takes."""
    with started([*helper, f"exec 3<>{folder}/go; echo open; cat"], stderr=None) as writer:
        assert writer.stdout.readline() == b"open\n"
        yield
        writer.stdin.close()
        assert writer.stdout.read() == b""


def side_by_side(way: Way, helper: Way) -> tuple[int, list[str]]:
    """Run them all at once; how many were there at the same time, and what went wrong."""
    folder = f"/tmp/fastvsock-{uuid.uuid4().hex}"
    prepare = f"mkdir {folder} && mkfifo {folder}/go && cat >{folder}/source"
    in_guest(helper, prepare, random.Random(-1).randbytes(SIZE))
    todo = sessions(way, folder)
    entrance = threading.Semaphore(AT_LOGIN)
    arrived: list[object] = []
    try:
        with ThreadPoolExecutor(len(todo)) as pool:
            running = [pool.submit(session.run, entrance, arrived) for session in todo]
            deadline = time.monotonic() + PATIENCE
            while len(arrived) + sum(one.done() for one in running) < len(todo) and time.monotonic() < deadline:
                time.sleep(0.05)
            together = len(arrived)
            with let_go(helper, folder):
                return together, [problem for one in running if (problem := one.result())]
    finally:
        in_guest(helper, f"rm -rf {folder}")


def test_20_execs_and_20_cps_at_once_by_jump(guest: Guest, engine: str) -> None:
    assert side_by_side(guest.jump(engine), guest.jump("auto")) == (2 * EACH, [])


def test_20_execs_and_20_cps_at_once_on_descriptor_3(guest: Guest) -> None:
    assert side_by_side(guest.direct(), guest.jump("auto")) == (2 * EACH, [])


def test_20_execs_and_20_cps_at_once_each_by_a_proxy_of_its_own(guest: Guest, engine: str) -> None:
    assert side_by_side(guest.proxied(engine), guest.jump("auto")) == (2 * EACH, [])


def test_20_execs_and_20_cps_at_once_by_one_proxy(guest: Guest, engine: str) -> None:
    with serving("proxy", guest.uds, str(DROPBEAR), engine=engine) as proxy:
        way = guest.dbclient("-p", str(proxy.port))
        assert side_by_side(way, way) == (2 * EACH, [])
        assert proxy.end()[0] == 0


def test_the_old_scripts_shape_fails_where_these_hold(guest: Guest) -> None:
    need("socat")
    port = closed_port()
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr"
    with started(["socat", listen, f'EXEC:"{transport(guest.uds, DROPBEAR, "auto")}"'], stderr=subprocess.DEVNULL):
        eventually(lambda: f"0100007F:{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text(), True)
        together, problems = side_by_side(guest.dbclient("-p", str(port)), guest.jump("auto"))
    assert (together, len(problems)) == (1, 2 * EACH - 1), "all but one of them break"
