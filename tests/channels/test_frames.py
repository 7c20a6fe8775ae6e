"""Frames: whatever pieces they come in they mean the same, and what breaks the rules is refused by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvsock.engines import frames
from fastvsock.engines.frames import Complaint, frame
from support.bad_frames import BAD, MESSAGE, events

WHOLE = (
    frame(frames.DATA, 1, b"out")
    + frame(frames.DATA, 2, b"err" * 1000)
    + frame(MESSAGE, 0, b"a message")
    + frame(MESSAGE + 1)
    + frames.credit_frame(0, 70000)
    + frames.end_frame(1, 3)
    + frame(frames.STOP, 0)
    + frames.end_frame(2, 3000)
)
MEANING = [
    (frames.DATA, 1, b"out"),
    (frames.DATA, 2, b"err" * 1000),
    (MESSAGE, 0, b"a message"),
    (MESSAGE + 1, 0, b""),
    (frames.CREDIT, 0, frames.WINDOW + 70000),
    (frames.END, 1, 3),
    (frames.STOP, 0, 0),
    (frames.END, 2, 3000),
]


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 8, 9, 1000, 1 << 20])
def test_frames_mean_the_same_in_any_pieces(pieces: int) -> None:
    assert events(WHOLE, pieces) == MEANING


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_rules_is_refused_by_name(name: str) -> None:
    data, code = BAD[name]
    with pytest.raises(Complaint) as caught:
        events(data)
    assert caught.value.args[0] == code
    assert str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_is_refused_or_harmless(data: bytes, pieces: int) -> None:
    said = ""
    try:
        events(data, pieces)
    except Complaint as complaint:
        said = str(complaint)
    assert len(said) < 200


def test_a_receiver_gives_back_what_it_delivers_and_more_where_all_of_it_flows() -> None:
    books = frames.Incoming()
    books.take(frames.WINDOW, 1)
    assert books.deliver(10) == 0, "for a few bytes a frame is not worth it"
    assert books.deliver(frames.WINDOW - 10) == 2 * frames.WINDOW
    while books.window < frames.WINDOW_MAX:
        books.take(books.room, 1)
        books.deliver(books.held)
    books.take(books.room, 1)
    assert books.deliver(books.held) == frames.WINDOW_MAX


def test_a_stream_that_flows_in_small_frames_gets_a_larger_window_too() -> None:
    """Else it is credit by credit that it flows, however much of it there is."""
    books = frames.Incoming()
    grants = []
    for _ in range(4 * frames.WINDOW_MAX // 4096):
        books.take(4096, 1)
        grants += [grant] if (grant := books.deliver(4096)) else []
    assert grants[0] == frames.WINDOW // 2 + frames.WINDOW
    assert grants[-1] == frames.WINDOW_MAX // 2
    assert books.window == frames.WINDOW_MAX


def test_a_receiver_whose_reader_is_slow_gives_no_larger_window() -> None:
    books = frames.Incoming()
    for _ in range(100):
        books.take(books.room, 1)
        while not books.room:
            books.deliver(4096)
            books.take(0, 1)
            assert books.held, "it never catches up"
    assert books.window == frames.WINDOW
