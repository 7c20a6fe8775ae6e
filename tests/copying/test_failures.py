"""What goes wrong in the middle of a copy: nothing half under its name, each loss by name, the rest copied."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastvsock.copying import entries
from fastvsock.copying.entries import Entry
from fastvsock.copying.options import Options
from fastvsock.copying.result import Collection
from fastvsock.copying.send import Sender
from support import HANG, started
from support.channels import Guest, agent_on, within
from support.copying import FarEnd, agent_that, attack, copied, cp, cp_command, leftovers
from support.services import children_of

LARGE = 48 << 20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that is worth going on with."""
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * (LARGE >> 20))
    return tmp_path / "large"


def begun_file(end: FarEnd, size: int, name: bytes = b"large", mtime: int = 5) -> None:
    """The first 3 MiB of a file, and then nothing."""
    end.put(entries.pair(entries.SOURCE, 0), Entry(name, 0o644, 0, 0, mtime, size).encode(entries.FILE))
    for _ in range(3):
        end.put(entries.header(entries.DATA, 1 << 20) + b"x" * (1 << 20))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_client_that_is_ended_leaves_no_half_file(tmp_path: Path, engine: str, number: int) -> None:
    (tmp_path / "target").mkdir()
    with (
        agent_that(tmp_path / "agent.sock", lambda end: begun_file(end, 1 << 30)) as guest,
        started(cp_command(guest, ":/large", tmp_path / "target", engine=engine)) as child,
    ):
        assert within(HANG, lambda: sum(path.stat().st_size for path in leftovers(tmp_path / "target")) == 3 << 20)
        child.send_signal(number)
        assert child.wait(HANG) == -number
        said = child.stderr.read()
        assert b"Traceback" not in said
        if number != signal.SIGKILL:
            assert said.startswith(b"fastvsock: interrupted (the same command with --resume goes on from there, and")
            assert said.count(b"\n") == 1
    assert [path.name for path in (tmp_path / "target").iterdir()] == [
        path.name for path in leftovers(tmp_path / "target")
    ]


def test_what_is_small_is_not_left_behind(tmp_path: Path, engine: str) -> None:
    (tmp_path / "target").mkdir()

    def act(end: FarEnd) -> None:
        end.put(entries.pair(entries.SOURCE, 0), Entry(b"f", size=100_000).encode(entries.FILE))
        end.put(entries.header(entries.DATA, 50_000) + bytes(50_000))
        end.sock.shutdown(2)

    with agent_that(tmp_path / "agent.sock", act) as guest:
        done = cp(guest, ":/f", tmp_path / "target", engine=engine)
    assert done.returncode == 125
    assert b"the connection to the guest's agent ended early" in done.stderr
    assert b" (the same command with --resume goes on from there" in done.stderr
    assert not list((tmp_path / "target").iterdir())


def test_an_agent_that_is_killed_is_told_and_the_rest_is_resumed(tmp_path: Path, engine: str, large: Path) -> None:
    (tmp_path / "target").mkdir()
    with agent_on(tmp_path / "agent.sock", engine=engine) as guest, stopped_half_way(guest, large, tmp_path, engine):
        pass
    with agent_on(tmp_path / "agent2.sock", engine=engine) as guest:
        done = copied(guest, "--resume", "--checksum", large, f":{tmp_path}/target", engine=engine)
    assert done.returncode == 0
    assert (tmp_path / "target" / "large").read_bytes() == large.read_bytes()
    assert not leftovers(tmp_path / "target")


@contextmanager
def stopped_half_way(guest: Guest, large: Path, tmp_path: Path, engine: str) -> Iterator[None]:
    """A copy to the guest whose process there is killed once it has written more than 1 MiB."""
    target = tmp_path / "target"
    with started(cp_command(guest, large, f":{target}", engine=engine)) as child:
        assert within(
            HANG, lambda: any(path.stat().st_size > 1 << 20 for path in leftovers(target)) or child.poll() is not None
        )
        for pid in children_of(guest.agent.pid):
            os.kill(pid, signal.SIGKILL)
        status = child.wait(HANG)
        if status == 0:
            (target / "large").unlink()  # it was faster than we are
        else:
            assert status == 125
            assert not (target / "large").exists()
        yield


def test_a_client_that_is_gone_ends_the_copy_in_the_guest(
    tmp_path: Path, guest: Guest, engine: str, large: Path
) -> None:
    fifo = tmp_path / "slow"
    os.mkfifo(fifo)
    with started(cp_command(guest, f":{large}", "-", engine=engine), stdout=subprocess.PIPE) as child:
        assert child.stdout.read(1)
        assert children_of(guest.agent.pid)
        child.kill()
        child.wait(HANG)
    assert within(HANG, lambda: not children_of(guest.agent.pid))


def test_resume_goes_on_inside_a_file(tmp_path: Path, guest: Guest, engine: str, large: Path) -> None:
    (tmp_path / "target").mkdir()
    status = large.stat()
    with (
        agent_that(
            tmp_path / "agent.sock", lambda end: begun_file(end, status.st_size, mtime=status.st_mtime_ns)
        ) as bad,
        started(cp_command(bad, f":{large}", tmp_path / "target", engine=engine)) as child,
    ):
        assert within(HANG, lambda: sum(path.stat().st_size for path in leftovers(tmp_path / "target")) == 3 << 20)
        child.terminate()
        child.wait(HANG)
    done = cp(guest, "--resume", "--json", f":{large}", tmp_path / "target", engine=engine)
    assert (done.returncode, done.stderr) == (0, b"")
    assert f'"bytes": {LARGE - (3 << 20)}'.encode() in done.stdout
    assert (tmp_path / "target" / "large").read_bytes() == b"x" * (3 << 20) + large.read_bytes()[3 << 20 :]
    assert not leftovers(tmp_path / "target")
    os.utime(tmp_path / "target" / "large", ns=(status.st_mtime_ns, status.st_mtime_ns))
    copied(guest, "--resume", "--checksum", f":{large}", tmp_path / "target", engine=engine)
    assert (tmp_path / "target" / "large").read_bytes() == large.read_bytes()


def test_a_checksum_finds_what_resume_went_on_with(tmp_path: Path, guest: Guest, engine: str, large: Path) -> None:
    (tmp_path / "target").mkdir()
    status = large.stat()
    with (
        agent_that(
            tmp_path / "agent.sock", lambda end: begun_file(end, status.st_size, mtime=status.st_mtime_ns)
        ) as bad,
        started(cp_command(bad, f":{large}", tmp_path / "target", engine=engine)) as child,
    ):
        assert within(HANG, lambda: sum(path.stat().st_size for path in leftovers(tmp_path / "target")) == 3 << 20)
        child.terminate()
        child.wait(HANG)
    done = cp(guest, "--resume", "--checksum", f":{large}", tmp_path / "target", engine=engine)
    sentence = f"fastvsock: :{large}: the copy has another digest\n".encode()
    assert (done.returncode, done.stderr) == (1, sentence)
    assert not list((tmp_path / "target").iterdir())


@pytest.mark.parametrize("way", ["put", "get"])
def test_resume_skips_what_is_there_and_cleans(tmp_path: Path, guest: Guest, engine: str, way: str) -> None:
    (tmp_path / "from" / "sub").mkdir(parents=True)
    for number in range(5000):
        (tmp_path / "from" / "sub" / str(number)).write_bytes(b"%d" % number)
    (tmp_path / "from" / "link").hardlink_to(tmp_path / "from" / "sub" / "7")
    (tmp_path / "into").mkdir()
    words = (tmp_path / "from", f":{tmp_path}/into") if way == "put" else (f":{tmp_path}/from", tmp_path / "into")
    copied(guest, *words, engine=engine)
    there = tmp_path / "into" / "from"
    (there / "sub" / "17").write_bytes(b"xx")
    (there / "sub" / "18").unlink()
    (there / "sub" / "19").chmod(0o600)
    before = (there / "sub" / "20").stat().st_ino
    stale = there / "sub" / f".fastvsock-{'0' * 32}-01234567.part"
    stale.write_bytes(b"old")
    done = cp(guest, "--resume", "--stats", *words, engine=engine)
    assert done.returncode == 0
    assert b" 4999 skipped, 0 failed; 4 bytes" in done.stderr
    assert (there / "sub" / "17").read_bytes() == b"17"
    assert (there / "sub" / "18").read_bytes() == b"18"
    assert (there / "sub" / "19").stat().st_mode & 0o777 == 0o644
    assert (there / "sub" / "20").stat().st_ino == before
    assert not stale.exists()


class QuietWire:
    """A wire that takes all frames, and answers nothing."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.on_frame: object = None
        self.meddle: Callable[[], None] = lambda: None

    def put(self, frame: bytes) -> None:
        self.frames.append(frame)

    def send_content(self, fd: int, offset: int, count: int) -> tuple[int, int]:
        self.meddle()
        return count, 0 if len(os.pread(fd, count, offset)) == count else -1


@pytest.mark.parametrize("change", ["grows", "shrinks", "is written"])
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_a_file_that_changes_while_it_is_read_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, size: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    os.utime(path, ns=(1, 1))

    def meddle() -> None:
        with path.open("r+b") as file:
            if change == "shrinks":
                file.truncate(size // 2)
            else:
                file.seek(0 if change == "is written" else size)
                file.write(b"new")

    wire = QuietWire()
    wire.meddle = meddle
    read = os.read

    def read_and_meddle(fd: int, count: int) -> bytes:
        data = read(fd, count)
        meddle()
        return data

    monkeypatch.setattr(os, "read", read_and_meddle)
    report = Collection()
    sender = Sender(wire, Options(), report, native=False)  # type: ignore[arg-type]
    monkeypatch.setattr(sender, "finish", lambda: None)
    sender.run([os.fsencode(path)], [b"file"])
    monkeypatch.undo()
    if size > entries.SMALL:
        assert entries.parse_fault(wire.frames[-1][8:]) == (entries.CHANGED, 0, b"")
    else:
        assert [str(failure) for failure in report.result.failed] == ["file: changed while it was read"]


def test_a_change_at_the_other_end_is_told_by_name(tmp_path: Path, engine: str) -> None:
    entry = Entry(b"f", size=100_000).encode(entries.FILE)
    half = entries.header(entries.DATA, 50_000) + bytes(50_000)
    top = [Entry(b"top", 0o755).encode(entries.ENTER), Entry(b"top").encode(entries.LEAVE)]
    frames = [top[0], entry, half, entries.close(entries.CHANGED), top[1], entries.pair(entries.FINISH, 3, 50_000)]
    with agent_that(tmp_path / "agent.sock", attack(*frames)) as guest:
        done = cp(guest, ":/top", tmp_path / "target", engine=engine)
    assert (done.returncode, done.stderr) == (1, b"fastvsock: :/top/f: changed while it was read\n")
    assert not list((tmp_path / "target").iterdir())


def test_a_file_that_vanishes_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x")
    report = Collection()
    wire = QuietWire()
    sender = Sender(wire, Options(), report, native=False)  # type: ignore[arg-type]
    monkeypatch.setattr(sender, "finish", lambda: None)
    monkeypatch.setattr(sender, "_open", lambda *arguments: os.open(tmp_path / "gone", os.O_RDONLY))
    sender.run([os.fsencode(tmp_path / "tree")], [b"tree"])
    assert [str(failure) for failure in report.result.failed] == ["tree/file: cannot read: No such file or directory"]
    assert [frame[0] for frame in wire.frames] == [entries.SOURCE, entries.ENTER, entries.NOTE, entries.LEAVE]


def test_a_target_that_cannot_be_used_is_told_before_anything_is_asked_for(tmp_path: Path, engine: str) -> None:
    done = cp(Guest(f"{tmp_path}/no.sock", None), ":/f", tmp_path / "nowhere" / "f", engine=engine)  # type: ignore[arg-type]
    sentence = f"fastvsock: cannot copy to {tmp_path}/nowhere/f: No such file or directory\n".encode()
    assert (done.returncode, done.stderr) == (1, sentence)
