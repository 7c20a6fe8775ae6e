"""The port file and the ready descriptor, whatever they are: written whole, and nobody else's is harmed."""

import os
import signal
import stat
import threading
from pathlib import Path

import pytest

from fastvsock import errors
from fastvsock.host import addresses
from fastvsock.services import announce
from support import HANG, started
from support.services import FarEnd, eventually, service_command

ADDRESS = addresses.Address("127.0.0.1", 4711)


def test_a_port_file_that_is_a_symlink_is_written_through_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something longer than a port")
    (tmp_path / "link").symlink_to("file")
    announce.PortFile(str(tmp_path / "link"), ADDRESS).remove()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "4711\n"


def test_a_port_file_that_is_a_fifo_gets_the_line_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    announce.PortFile(str(path), ADDRESS).remove()
    reader.join(HANG)
    assert read == ["4711\n"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_port_file_that_is_a_device_stays(tmp_path: Path) -> None:
    path = tmp_path / "full"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    except PermissionError:
        pytest.skip("this machine: only root makes devices")
    with pytest.raises(errors.FastvsockError, match="No space left on device"):
        announce.PortFile(str(path), ADDRESS)
    assert stat.S_ISCHR(path.stat().st_mode)


def test_what_cannot_be_replaced_leaves_no_draft_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(errors.FastvsockError, match="Input/output error"):
        announce.PortFile(str(tmp_path / "port"), ADDRESS)
    assert list(tmp_path.iterdir()) == []


def test_the_draft_of_one_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".port.{os.getpid()}").touch()  # in containers, pids come back
    announce.PortFile(str(tmp_path / "port"), ADDRESS)
    assert (tmp_path / "port").read_text() == "4711\n"


def test_a_path_that_is_no_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = os.fsdecode(b"/run/\xff")
    announce.PortFile(str(tmp_path / "port"), addresses.Address(path=path))
    assert (tmp_path / "port").read_bytes() == b"/run/\xff\n"


def test_a_fifo_that_nobody_reads_is_given_up_when_a_signal_comes(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with started(service_command("proxy", "--port-file", str(path), far_end.uds, "7")) as child:
        eventually(lambda: takes_signals(child.pid), True)
        child.terminate()
        assert child.wait(HANG) == 1
    assert stat.S_ISFIFO(path.stat().st_mode)


def takes_signals(pid: int) -> bool:
    """Whether a process blocks SIGTERM, to take it in a thread of its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", ["-1", "3", "4", "5", "6", "99", "99999999999"])
def test_a_ready_descriptor_that_is_not_open_is_reported_before_anything_else(far_end: FarEnd, number: str) -> None:
    expected = "expected the number of a descriptor that is open for writing"
    words = service_command("proxy", "--ready-fd", number, far_end.uds, "7")
    with started(words) as child:
        out, said = child.communicate(timeout=HANG)
    assert (child.returncode, out) == (2, b"")
    assert said == f"fastvsock: invalid --ready-fd {number}: {expected}\n".encode()
