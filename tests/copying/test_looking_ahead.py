"""`--resume` looks at both trees at the same time: neither end keeps for long what the other one waits for."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvsock.copying import entries
from fastvsock.copying.entries import Entry
from fastvsock.copying.options import Options
from fastvsock.copying.receive import Receiver
from fastvsock.copying.report import Report
from fastvsock.copying.send import Sender
from fastvsock.copying.target import Target
from fastvsock.copying.tree import Tree

FILES = 1500  # fewer than a sender offers before it waits
MOST = 256  # files, about, that one end may keep the other one waiting for


class Wire:
    """A wire in memory: what this end has put is `kept` until a flush, and then in `sent`. `frames` come in."""

    def __init__(self, *frames: bytes) -> None:
        self._frames = iter(frames)
        self.kept: list[bytes] = []
        self.sent: list[list[bytes]] = []
        self.on_frame: Callable[[int, bytes], None] | None = None
        self.before_wait: Callable[[], None] = lambda: None

    def put(self, frame: bytes) -> None:
        self.kept.append(frame)

    def flush(self) -> None:
        self.sent.append(self.kept)
        self.kept = []

    def next(self) -> tuple[int, bytes]:
        frame = next(self._frames)
        return frame[0], frame[8:]

    def wait_for_answers(self) -> None:
        """Everything is there already."""
        self.flush()
        assert self.on_frame
        offers = sum(frame[0] == entries.OFFER_FILE for frames in self.sent for frame in frames)
        self.on_frame(entries.VERDICT, entries.NOTHING_TO_DO.to_bytes(8, "big") * offers)


def test_a_sender_offers_files_before_it_has_to_wait_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(FILES):
        (tmp_path / str(number)).touch()
    wire = Wire()
    sender = Sender(wire, Options(resume=True), Report(), native=False)  # type: ignore[arg-type]
    monkeypatch.setattr(sender, "finish", lambda: None)
    sender.run([os.fsencode(tmp_path)], [b"source"])
    offers = [sum(frame[0] == entries.OFFER_FILE for frame in frames) for frames in wire.sent]
    assert sum(offers) == FILES
    assert max(offers) <= MOST
    assert sum(frame[0] == entries.KEPT for frame in wire.kept) == FILES


def test_a_receiver_says_what_it_has_found_before_it_has_looked_at_everything(tmp_path: Path) -> None:
    offers = [Entry(b"%d" % number).encode(entries.OFFER_FILE) for number in range(FILES)]
    frames = [
        entries.pair(entries.SOURCE, 0),
        Entry(b"top", 0o700).encode(entries.OFFER_ENTER),
        *offers,
        Entry(b"top", 0o700).encode(entries.ENTER),
        Entry(b"top").encode(entries.LEAVE),
        entries.pair(entries.FINISH, 2, 0),
    ]
    options = Options(resume=True)
    target = Target(os.fsencode(tmp_path), [b"top"])
    wire = Wire(*frames)
    Receiver(wire, Tree(target, options, native=False), options, Report(), [b"top"]).run()  # type: ignore[arg-type]
    target.close()
    verdicts = [len(frame) // 8 - 1 for frames in wire.sent for frame in frames if frame[0] == entries.VERDICT]
    assert sum(verdicts) == FILES
    assert max(verdicts) <= MOST
    assert not wire.kept
