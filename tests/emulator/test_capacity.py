"""How many connections there can be at once."""

import resource
from contextlib import ExitStack

import pytest

from fastvsock.emulator import Emulator
from support.guests import GUEST, Guest, accepted, connect, dial, receive, until


def raise_descriptor_limit(least: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < least:
        pytest.skip(f"this machine: needs {least} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, least), hard))


def test_1023_connections_work_and_the_next_one_is_refused(emulator: Emulator, guest: Guest) -> None:
    raise_descriptor_limit(5000)
    with ExitStack() as stack:
        hosts = [stack.enter_context(connect(emulator.uds, GUEST)) for _ in range(1023)]
        ends = [stack.enter_context(guest.accept()) for _ in hosts]
        for host in hosts:
            host.sendall(b"still here?")
        for end in ends:  # not in the order of `hosts`: each had a thread to itself
            assert receive(end, 11) == b"still here?"
        assert not tries(emulator)
        hosts[500].close()
        until(lambda: tries(emulator))


def tries(emulator: Emulator) -> bool:
    with dial(emulator.uds) as host:
        try:
            host.sendall(b"CONNECT 7\n")
            return accepted(host)
        except BrokenPipeError:
            return False
