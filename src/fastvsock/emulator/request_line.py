"""The CONNECT line as each VMM reads it: how many bytes belong to it, and which port it asks for.

For each VMM, `..._line` gets all bytes of a request so far and returns the length of the line, or None while more must
come; `..._port` gets the line. Both VMMs look at no more than 32 bytes. The differences are easy to miss: Firecracker
takes any letter case and extra words, but only a line that is whole when it first looks; Cloud Hypervisor waits for the
rest of a line, but the word is ``CONNECT`` or ``connect``, followed by a blank and nothing else but the port.
"""

from ..handshake import MAX_PORT

SHORTEST = len(b"CONNECT 0\n")  # Firecracker's muxer.rs reads this many bytes, then byte by byte up to a newline
LONGEST = 32  # bytes that both VMMs have room for
WORDS = (b"CONNECT ", b"connect ")  # Cloud Hypervisor's


def firecracker_line(data: bytes) -> int:
    """The length of the line at the start of `data`: up to the newline, or all that Firecracker has room for.

    The first nine bytes are not searched for the newline (read_local_stream_port in muxer.rs).
    """
    newline = data.find(b"\n", SHORTEST - 1, LONGEST)
    return newline + 1 if newline >= 0 else min(len(data), LONGEST)


def firecracker_port(line: bytes) -> int:
    """The guest port that a line asks for. Raises `ValueError` where Firecracker's muxer.rs refuses the line.

    Two words count, however they are spaced: "connect" in any letter case, and a number. A line without a newline is
    refused, unless it was cut off at 32 bytes.
    """
    words = line.decode().split()
    if len(words) < 2 or words[0].lower() != "connect" or not (line.endswith(b"\n") or len(line) == LONGEST):
        raise ValueError("not a request")
    return _port(words[1])


def cloud_hypervisor_line(data: bytes) -> int | None:
    """The length of the line at the start of `data`, or of what is refused already; None while more must come."""
    if len(data) >= len(WORDS[0]) and not data.startswith(WORDS):
        return len(WORDS[0])
    newline = data.find(b"\n", 0, LONGEST)
    if newline >= 0:
        return newline + 1
    return LONGEST if len(data) >= LONGEST else None


def cloud_hypervisor_port(line: bytes) -> int:
    """The guest port that a line asks for. Raises `ValueError` where Cloud Hypervisor 47 to 53 refuses the line.

    A line of 32 bytes is too long even with its newline (parse_port_from_read_command in muxer.rs).
    """
    if not (line.startswith(WORDS) and line.endswith(b"\n") and len(line) < LONGEST):
        raise ValueError("not a request")
    return _port(line[len(WORDS[0]) :].decode().strip())


def _port(digits: str) -> int:
    """The number that Rust parses as a u32. Raises `ValueError` for anything else."""
    digits = digits.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > MAX_PORT:
        raise ValueError("not a port")
    return int(digits)
