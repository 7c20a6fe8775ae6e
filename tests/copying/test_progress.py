"""The line on a terminal: how much there is to copy, and how long it will take."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvsock.channels import protocol
from fastvsock.copying import entries
from fastvsock.copying.entries import Entry
from fastvsock.copying.options import Options
from fastvsock.copying.progress import INTERVAL, Line
from fastvsock.copying.report import Report
from fastvsock.copying.send import Sender
from support import HANG
from support.copying import FarEnd, agent_that, cp_command

SMALL_FILE = Entry(b"file", 0o644, size=7, flags=entries.INLINE, rest=b"content").encode(entries.FILE)


def gives(end: FarEnd) -> None:
    """A file out of 1 KiB, once the line is to be drawn."""
    end.put(entries.pair(entries.SOURCE, 0), entries.pair(entries.TOTAL, 1024))
    time.sleep(2 * INTERVAL)
    end.put(SMALL_FILE, entries.pair(entries.FINISH, 1, 7), protocol.exited(0))


def takes(end: FarEnd) -> None:
    """A file, once the line is to be drawn; no agent answers for an entry before it has come."""
    while end.receive()[0] != entries.FINISH:
        pass
    time.sleep(2 * INTERVAL)
    end.put(entries.pair(entries.ACK, 1, 7), protocol.exited(0))


@pytest.mark.parametrize(("act", "total"), [(gives, b"7 B of 1.0 KiB, "), (takes, b"7 B of 7 B, ")])
def test_the_line_shows_the_total_and_the_time_left(
    tmp_path: Path, engine: str, act: Callable[[FarEnd], None], total: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    words = (":/file", tmp_path / "back") if act is gives else (tmp_path / "file", ":/there")
    ours, theirs = os.openpty()
    with agent_that(tmp_path / "agent.sock", act) as guest:
        assert subprocess.run(cp_command(guest, *words, engine=engine), stderr=theirs, timeout=HANG).returncode == 0
    line = os.read(ours, 1 << 16)
    assert total in line
    assert b" left  " in line
    os.close(ours)
    os.close(theirs)


class Frames:
    """A wire that keeps all frames, and answers nothing."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.on_frame: object = None

    def put(self, frame: bytes) -> None:
        self.sent.append(frame)


def test_a_sender_says_the_total_when_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("file", "sub/file"):
        (tmp_path / name).write_bytes(b"content")
    for measure in (True, False):
        wire = Frames()
        sender = Sender(wire, Options(measure=measure), Report(), native=False)  # type: ignore[arg-type]
        monkeypatch.setattr(sender, "finish", lambda: None)
        sender.run([os.fsencode(tmp_path)], [b"tree"])
        said = [frame[8:] for frame in wire.sent if frame[0] == entries.TOTAL]
        assert [entries.parse_pair(pair)[0] for pair in said] == [14] * measure


def test_what_was_there_already_is_not_part_of_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    line = Line(-1, total=1000)
    monkeypatch.setattr(line, "_write", shown.append)
    monkeypatch.setattr("fastvsock.copying.progress.INTERVAL", 0)
    line.skipped, line.content = 600, 400
    line.update()
    assert "400 B of 400 B, " in shown[0]
