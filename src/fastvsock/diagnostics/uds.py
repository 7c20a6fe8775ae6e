"""Checks a VMM's socket.

Cloud Hypervisor up to 40.0 exits when a client connects and leaves without a request. So nothing here connects unless a
guest port is given, and then a complete CONNECT line is sent as soon as the connection exists. Whether a process has
the socket open can be found out without connecting: see `probe` in host/socket_file.py.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from time import perf_counter

from .. import __version__, errors, handshake
from ..channels import client, protocol
from ..host.process_tree import name_of, peer_credentials
from ..host.socket_file import probe
from .findings import FAILED, OK, WARNING, Finding, looked

SLOW = 0.25  # seconds; Firecracker answers within 4 to 9 ms
TIMEOUT = 5.0  # seconds for connecting and for the handshake
GIVE_UDS = "give the uds_path of the VMM's vsock device"


def check_uds(uds: str, port: int | None) -> Iterator[Finding]:
    """Check that the VMM's socket exists, that a process has it open, and that `port` answers. Ends at a failure."""
    for name, look in (("uds", _file), ("listener", _listener)):
        finding = looked(name, look, uds)
        yield finding
        if finding.state == FAILED:
            return
    if port is None:
        yield Finding("handshake", OK, "not tried: no guest port is given (some VMMs exit when a client only connects)")
    else:
        for finding in _handshake(uds, port):
            yield finding
        if port == protocol.PORT and finding.state != FAILED:
            yield looked("agent", _agent, uds)


def no_uds(usual: str) -> Finding:
    """The finding where there is no socket to check."""
    return Finding("uds", OK, f"not checked: no UDS is given, and there is none at {usual}")


def _file(uds: str) -> Finding:
    try:
        mode = os.stat(uds).st_mode
    except OSError as error:
        denied = isinstance(error, PermissionError)
        advice = "run as the user that the VMM runs as" if denied else f"start the VMM, or {GIVE_UDS}"
        return Finding("uds", FAILED, f"{uds}: {error.strerror}", advice)
    if not stat.S_ISSOCK(mode):
        return Finding("uds", FAILED, f"{uds}: not a socket", GIVE_UDS)
    return Finding("uds", OK, f"{uds}: a socket")


def _listener(uds: str) -> Finding:
    """Whether a process has the socket open, and this user may connect."""
    address, held = handshake.shortened(uds, 0)
    try:
        number = probe(address)
    finally:
        if held is not None:
            os.close(held)
    if number == errno.EPROTOTYPE:
        text = f"{uds}: a process has it open, and this user may connect (checked without connecting)"
        return Finding("listener", OK, text)
    if number in (0, errno.EPERM):
        return Finding("listener", FAILED, f"{uds}: not a stream socket but a datagram socket", GIVE_UDS)
    advice = {
        errno.ECONNREFUSED: "no process has it open: start the VMM again, its socket file is left from an earlier run",
        errno.EACCES: "run as the user that the VMM runs as, or change the socket's mode",
    }.get(number, "check that the VMM runs")
    return Finding("listener", FAILED, f"{uds}: {os.strerror(number)}", advice)


def _handshake(uds: str, port: int) -> Iterator[Finding]:
    """Connect, and ask for `port` in the same moment. What comes back also shows which process listens."""
    started = perf_counter()
    try:
        connection = handshake.connect(uds, port, TIMEOUT)
    except errors.FastvsockError as error:
        yield _failure(uds, port, error)
        return
    seconds = perf_counter() - started
    with socket.socket(fileno=connection.detach()) as sock:
        yield looked("vmm", _vmm, sock)
    text = f"guest port {port} answered in {seconds * 1000:.1f} ms"
    if seconds > SLOW:
        yield Finding("handshake", WARNING, text, "check what keeps the VMM busy: CPU, or many new connections")
    else:
        yield Finding("handshake", OK, text)


def _agent(uds: str) -> Finding:
    try:
        return ask_agent(uds)
    except errors.FastvsockError as error:
        return no_agent(error)


def ask_agent(uds: str) -> Finding:
    """The guest's agent: its version, and how long it takes to say so. Raises `ConnectError` and `ChannelError`."""
    started = perf_counter()
    found = client.information(uds, timeout=TIMEOUT)
    seconds = perf_counter() - started
    text = errors.printable(
        f"fastvsock agent {found.get('version')} on {found.get('hostname')} (Linux {found.get('kernel')}), "
        f"engine {found.get('engine')}, {found.get('channels')} channels open, answered in {seconds * 1000:.1f} ms; "
        f"this is fastvsock {__version__}"
    )
    if found.get("version") != __version__:
        return Finding(
            "agent", WARNING, text, "install the same release in the guest and here, if exec or forward fails"
        )
    return Finding("agent", OK, text)


def no_agent(error: errors.FastvsockError) -> Finding:
    """The finding for an agent that did not answer, or not as one does."""
    return Finding("agent", FAILED, str(error), f"check that fastvsock agent listens on vsock port {protocol.PORT}")


def _failure(uds: str, port: int, error: errors.FastvsockError) -> Finding:
    if isinstance(error, errors.HandshakeTimeoutError):
        text = f"{uds}: no answer for guest port {port} within {TIMEOUT:g} s"
        advice = "check whether the VMM is paused, or out of file descriptors (its limit is usually 1,024 open files)"
        return Finding("handshake", FAILED, text, advice)
    return Finding("handshake", FAILED, str(error), f"check that the guest runs and listens on vsock port {port}")


def _vmm(sock: socket.socket) -> Finding:
    """The process at the other end: for a client, SO_PEERCRED holds the one that called listen(2)."""
    pid = peer_credentials(sock)[0]
    if not pid:
        return Finding("vmm", OK, "the process that listens is outside of this pid namespace")
    return Finding("vmm", OK, f"{name_of(pid) or 'a process that has ended, or is hidden,'} listens (pid {pid})")
