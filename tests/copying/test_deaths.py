"""An agent and a VMM that die in the middle of a copy. A tar stream on stdin is the source: it waits for the test."""

import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from support import HANG, Child, started, write_all
from support.channels import Guest, agent_on, umbrella, within
from support.copying import copied, cp_command, leftovers
from support.services import children_of

LARGE = 8 << 20
FIRST_PART = 3 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two small files and a large one."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in (("a", b"first"), ("b", b"second"), ("large", os.urandom(LARGE))):
        (folder / name).write_bytes(content)
        os.utime(folder / name, (5, 5))
    return folder


@dataclass
class HalfWay:
    """A copy of `source` that is in the middle of its large file, and what it has yet to be given."""

    child: Child
    target: Path
    rest: bytes

    def go_on(self) -> None:
        """Give it the rest."""
        write_all(self.child.stdin.fileno(), self.rest)
        self.child.stdin.close()

    def assert_broken(self) -> None:
        """It ends with 125 and a sentence; what it reported is there, and the large file is not."""
        output = self.child.stdout.read()
        assert self.child.wait(HANG) == 125
        message = self.child.stderr.read()
        assert message.startswith(b"fastvsock: the connection to the guest's agent ended early")
        assert b"Traceback" not in message
        events = [json.loads(line) for line in output.splitlines()]
        assert [event["path"] for event in events if event["event"] == "copied"] == [".", "a", "b"]
        assert sorted(path.name for path in self.target.iterdir() if path not in leftovers(self.target)) == ["a", "b"]


@contextmanager
def half_way(guest: Guest, source: Path, engine: str) -> Iterator[HalfWay]:
    """A copy into a folder beside the source, as far as that it has written 3 MiB of the large file."""
    target = source.parent / "target"
    target.mkdir()
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a", "b", "large"):
            tar.add(source / name, name)
    content = stream.getvalue()
    at = content.index((source / "large").read_bytes()[:1024]) + FIRST_PART
    with started(cp_command(guest, "--json", "-", f":{target}", engine=engine)) as child:
        write_all(child.stdin.fileno(), content[:at])
        assert within(HANG, lambda: any(path.stat().st_size >= 2 << 20 for path in leftovers(target)))
        yield HalfWay(child, target, content[at:])


def assert_resumed(guest: Guest, source: Path, engine: str) -> None:
    """A second run copies what is missing, leaves alone what is there, and cleans."""
    target = source.parent / "target"
    before = (target / "a").stat().st_ino
    copied(guest, "--resume", "--checksum", f"{source}/.", f":{target}", engine=engine)
    assert (target / "large").read_bytes() == (source / "large").read_bytes()
    assert (target / "a").stat().st_ino == before
    assert not leftovers(target)


def test_an_agent_that_is_killed_alone_leaves_the_copy_to_its_process(
    tmp_path: Path, source: Path, engine: str
) -> None:
    with (
        agent_on(tmp_path / "agent.sock", engine=engine) as guest,
        half_way(guest, source, engine) as copy,
    ):
        guest.agent.kill()
        guest.agent.wait(HANG)
        copy.go_on()
        assert (copy.child.wait(HANG), copy.child.stderr.read()) == (0, b"")
        assert (copy.target / "large").read_bytes() == (source / "large").read_bytes()


def test_an_agent_that_is_killed_with_its_copies_is_reported_and_the_rest_is_resumed(
    tmp_path: Path, source: Path, engine: str
) -> None:
    with (
        agent_on(tmp_path / "agent.sock", engine=engine) as guest,
        half_way(guest, source, engine) as copy,
    ):
        for pid in [*children_of(guest.agent.pid), guest.agent.pid]:
            os.kill(pid, signal.SIGKILL)
        copy.assert_broken()
    with agent_on(tmp_path / "second.sock", engine=engine) as guest:
        assert_resumed(guest, source, engine)


def test_a_vmm_that_dies_is_told_and_the_rest_is_resumed(tmp_path: Path, source: Path, engine: str) -> None:
    uds = tmp_path / "v.sock"
    with started(umbrella("emulate", "--agent", str(uds)), stderr=subprocess.DEVNULL) as vmm:
        assert vmm.stdout.readline()
        with half_way(Guest(str(uds), vmm), source, engine) as copy:
            for pid in [vmm.pid, *children_of(vmm.pid)]:  # the guest dies with it
                os.kill(pid, signal.SIGKILL)
            vmm.wait(HANG)
            copy.assert_broken()
    with agent_on(tmp_path / "second.sock", engine=engine) as guest:
        assert_resumed(guest, source, engine)
