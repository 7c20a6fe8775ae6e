"""The CONNECT line as Firecracker's muxer.rs reads it."""

from ..errors import EmulatorError as EmulatorError
from ..handshake import MAX_PORT

LINE_MIN, LINE_MAX = 10, 32  # bytes of a CONNECT line; muxer.rs


# The handshake as muxer.rs reads it


def take_line(data: bytes) -> bytes | None:
    """The part of `data` that the VMM takes for the CONNECT line, or None while `data` ends before the line does.

    The VMM looks for the newline from the tenth byte on, and gives up looking after 32 (read_local_stream_port).
    """
    newline = data.find(b"\n", LINE_MIN - 1, LINE_MAX)
    if newline >= 0:
        return data[: newline + 1]
    return data[:LINE_MAX] if len(data) >= LINE_MAX else None


def asked_port(line: bytes) -> int:
    """The guest port that a CONNECT line asks for. Raises `ValueError` where muxer.rs refuses the line.

    Two words count, however they are spaced: "connect" in any letter case, and what Rust parses as a u32.
    """
    words = line.decode().split()
    if len(words) < 2 or words[0].lower() != "connect":
        raise ValueError("not a request")
    digits = words[1].removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > MAX_PORT:
        raise ValueError("not a port")
    return int(digits)
