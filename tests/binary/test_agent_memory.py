"""The memory that `fastvsock agent` keeps in a guest, which it shares with nobody."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fastvsock
from support import HANG, started
from support.channels import within

LIMIT = 8 * 1024  # KiB
# The agent's process with a Unix socket, and with the modules that it has when it listens on AF_VSOCK.
AGENT = """
import _socket, sys
from fastvsock.agent import server, work
from fastvsock.cli import agent as command
command.parse([])
agent = work.Agent(server.prepare_process())
listener = _socket.socket(_socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
listener.setblocking(False)
server.Server(agent, {listener: agent.serve}, frozenset({server.HOST})).run()
"""


@pytest.fixture
def agent(probe: Path, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """The agent in the binary, which starts as it does for all but a few commands: its socket, and its process."""
    program, uds = tmp_path / "agent", tmp_path / "agent.sock"
    # A file that was written at once may lie in huge pages, of which each would be mapped as a whole.
    with probe.open("rb") as source, program.open("wb", buffering=0) as copy:
        for piece in iter(lambda: source.read(1 << 16), b""):
            copy.write(piece)
    program.chmod(0o755)
    with started([str(program), str(uds), AGENT], stdin=subprocess.DEVNULL) as child:
        assert within(HANG, lambda: uds.is_socket())
        yield uds, child.pid
        child.terminate()
        child.wait(HANG)


def at_rest(pid: int) -> bool:
    return len(os.listdir(f"/proc/{pid}/task")) == 1


def kilobytes(pid: int) -> int:
    """Proportional set size: what is its own, and its share of what others have mapped too."""
    found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_at_rest_it_has_8_mib_at_most_also_after_work(agent: tuple[Path, int]) -> None:
    uds, pid = agent
    assert kilobytes(pid) <= LIMIT
    guest = fastvsock.Guest(uds)
    each = bytes(16 << 20)
    work: list[Callable[[], object]] = [
        *(lambda: guest.run(["sleep", "0.5"], check=True) for _ in range(30)),
        *(lambda: guest.run(["cat"], input=each, capture_output=True, check=True) for _ in range(8)),
        lambda: guest.run(["id"], user=str(os.getuid()), capture_output=True, check=True),
        guest.info,
    ]
    with ThreadPoolExecutor(len(work)) as threads:
        for done in [threads.submit(piece) for piece in work]:
            done.result()
    assert within(HANG, lambda: at_rest(pid))
    assert kilobytes(pid) <= LIMIT
