"""Diagnoses a VMM's socket."""

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from time import perf_counter

from .. import errors, handshake
from .findings import FAILED, OK, WARNING, Finding, looked

SLOW = 0.25  # seconds; a handshake that is answered at all took Firecracker 4 to 9 ms
TIMEOUT = 5.0  # seconds for connecting and for the handshake


def check_uds(uds: str, port: int | None) -> Iterator[Finding]:
    """The VMM's socket: there, a socket, open to us, and, where a guest port is given, answering. Ends at a failure."""
    try:
        mode = os.stat(uds).st_mode
    except OSError as error:
        missing = "start the VMM, or give the uds_path of its vsock device"
        advice = "look as the user that the VMM runs as" if isinstance(error, PermissionError) else missing
        yield Finding("uds", FAILED, f"{uds}: {error.strerror}", advice)
        return
    if not stat.S_ISSOCK(mode):
        yield Finding(
            "uds", FAILED, f"{uds}: is there, but is no socket", "give the uds_path of the VMM's vsock device"
        )
        return
    yield Finding("uds", OK, f"{uds}: is a socket")
    reached = looked("connect", _connect, uds)
    yield reached
    if port is not None and reached.state == OK:
        yield looked("handshake", _handshake, uds, port)


def no_uds(usual: str) -> Finding:
    """That no socket was looked at."""
    return Finding("uds", OK, f"not looked at: none is given, and there is none at {usual}")


def _connect(uds: str) -> Finding:
    """Whether a connection is taken; nothing is said on it."""
    held = None
    try:
        address, held = handshake.shortened(uds, 0)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(address)
        return Finding("connect", OK, f"{uds}: may be connected to")
    except OSError as error:
        advice = {
            errno.ECONNREFUSED: "nobody listens on it: start the VMM anew, its socket file is a former one's",
            errno.EACCES: "run as the user that the VMM runs as, or change the socket's mode",
            errno.EPROTOTYPE: "it is no stream socket: give the uds_path of the VMM's vsock device",
        }.get(error.errno or 0, "see whether the VMM is paused, or out of file descriptors")
        return Finding("connect", FAILED, f"{uds}: {error.strerror or 'no answer'}", advice)
    finally:
        if held is not None:
            os.close(held)


def _handshake(uds: str, port: int) -> Finding:
    started = perf_counter()
    try:
        handshake.connect(uds, port, TIMEOUT).close()
    except errors.HandshakeTimeoutError:
        text = f"{uds}: no answer for guest port {port} within {TIMEOUT:g} s"
        advice = "see whether the VMM is paused, or out of file descriptors (its limit of open files, 1,024 is usual)"
        return Finding("handshake", FAILED, text, advice)
    except errors.ConnectError as error:
        text = re.sub(r" \(--\w+ [^)]*\)$", "", str(error))  # an option that the transport has
        return Finding("handshake", FAILED, text, f"see that the guest runs and listens on vsock port {port}")
    seconds = perf_counter() - started
    text = f"guest port {port} answered in {seconds * 1000:.1f} ms"
    if seconds > SLOW:
        return Finding("handshake", WARNING, text, "see what keeps the VMM busy: CPU, or many new connections")
    return Finding("handshake", OK, text)
