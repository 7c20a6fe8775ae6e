"""Frames that break the rules, each with what it is refused for, and what the books make of them."""

from fastvsock.engines import frames
from fastvsock.engines.frames import Frames, frame, header

MESSAGE = frames.MESSAGES + 5


def events(data: bytes, pieces: int = 1 << 20) -> list[tuple[int, int, object]]:
    """What a receiver of streams 1 and 2, which sends stream 0, makes of `data` in pieces of that size."""
    books = Frames(incoming=(1, 2), outgoing=(0,))
    found: list[tuple[int, int, object]] = []
    for at in range(0, len(data), pieces):
        for kind, stream, value in books.receive(memoryview(data)[at : at + pieces]):
            value = bytes(value) if isinstance(value, memoryview) else value
            if kind == frames.DATA and found and found[-1][:2] == (kind, stream):
                found[-1] = kind, stream, found[-1][2] + value  # type: ignore[operator]
            else:
                found.append((kind, stream, value))
    return found


BAD = {
    "padding": (header(frames.DATA, 1, 1)[:2] + b"\0\1" + b"\0\0\0\1x", frames.PADDING),
    "type": (header(4, 1, 1), frames.PADDING),
    "stream": (header(frames.DATA, 3, 1), frames.STREAM),
    "far stream": (header(frames.DATA, 255, 1), frames.STREAM),
    "wrong way": (header(frames.DATA, 0, 1), frames.STREAM),
    "credit for what it sends": (header(frames.CREDIT, 1, 4), frames.STREAM),
    "message with a stream": (header(MESSAGE, 1, 4), frames.STREAM),
    "empty data": (header(frames.DATA, 1, 0), frames.LENGTH),
    "length of an end": (header(frames.END, 1, 7), frames.LENGTH),
    "length of credit": (header(frames.CREDIT, 0, 8), frames.LENGTH),
    "length of a stop": (header(frames.STOP, 0, 1), frames.LENGTH),
    "overrun": (header(frames.DATA, 1, frames.WINDOW + 1), frames.OVERRUN),
    "overrun by all": (header(frames.DATA, 1, 0xFFFFFFFF), frames.OVERRUN),
    "two frames": (
        frame(frames.DATA, 1, bytes(frames.WINDOW - 1)) + header(frames.DATA, 1, 2 * frames.WINDOW + 1),
        frames.OVERRUN,
    ),
    "data after the end": (frames.end_frame(1, 0) + header(frames.DATA, 1, 1), frames.AFTER_END),
    "two ends": (frames.end_frame(1, 0) + header(frames.END, 1, 8), frames.AFTER_END),
    "too few": (frame(frames.DATA, 1, b"abc") + frames.end_frame(1, 4), frames.COUNT),
    "too many": (frame(frames.DATA, 1, b"abc") + frames.end_frame(1, 2), frames.COUNT),
    "credit": (frames.credit_frame(0, frames.WINDOW_MAX), frames.EXCESS),
    "long message": (header(MESSAGE, 0, frames.MAX_MESSAGE + 1), frames.TOO_LONG),
}
