"""The line that asks for a port: what the emulator accepts and refuses, as real VMMs do."""

import socket
import time

import pytest

from fastvsock.emulator import Emulator
from support import pattern
from support.guests import UNUSED, accepted, connect, dial, receive


def test_the_answer_is_ok_and_a_port_from_2_to_the_30_up(emulator: Emulator) -> None:
    for n in range(3):
        with dial(emulator.uds) as host:
            host.sendall(b"CONNECT 7\n")
            assert receive(host, 14) == b"OK %d\n" % (2**30 + n)


def test_a_connect_line_a_second_after_connecting_is_accepted(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        time.sleep(1)
        host.sendall(b"CONNECT 7\n")
        assert accepted(host)


@pytest.mark.parametrize("cut", [3, 9, 10, 12])
def test_a_connect_line_in_two_writes_is_refused(emulator: Emulator, cut: int) -> None:
    line = b"CONNECT 00007\n"
    with dial(emulator.uds) as host:
        host.sendall(line[:cut])
        time.sleep(0.2)
        with pytest.raises(BrokenPipeError):
            host.sendall(line[cut:])
        assert not accepted(host)


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 7\n",
        b"connect 7\n",
        b"cOnNeCt 7\n",
        b"  CONNECT \t  7  \n",
        b"CONNECT 7\r\n",
        b"CONNECT 00007\n",
        b"CONNECT +7\n",
        b"CONNECT 7 and more\n",
        b"CONNECT\n7\n",  # the first nine bytes are not searched for the end of the line
        b"CONNECT 7" + b" " * 23,
    ],
)
def test_an_odd_spelling_that_firecracker_accepts_is_accepted(emulator: Emulator, line: bytes) -> None:
    with dial(emulator.uds) as host:
        host.sendall(line + b"x")
        assert accepted(host)
        assert host.recv(10) == b"x"


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 4294967296\n",
        b"CONNECT 4294967295\n",
        b"CONNECT -1\n",
        b"CONNECT ++7\n",
        b"CONNECT seven\n",
        b"CONNECT 7x\n",
        b"CONNECT \xd9\xa7\n",  # a digit, but not one of ASCII
        b"CONNECT \xff 7\n",
        b"CONNECT   \n",
        b"LISTEN  7\n",
        b"CONNECT7 7\n",
        b"          \n",
        b"CONNECT" + b" " * 25 + b"7\n",
    ],
)
def test_a_request_that_firecracker_refuses_is_refused(emulator: Emulator, line: bytes) -> None:
    with dial(emulator.uds) as host:
        host.sendall(line)
        assert not accepted(host)


def test_a_line_is_cut_at_32_bytes_and_the_rest_is_payload(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT 7" + b" " * 23 + b"  rest\n")
        assert accepted(host)
        assert receive(host, 7) == b"  rest\n"


def test_payload_behind_the_line_in_the_same_write_is_delivered(emulator: Emulator) -> None:
    payload = pattern(20_008)
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT 7\n" + payload)
        assert accepted(host)
        assert receive(host, len(payload)) == payload


def test_a_port_where_nothing_listens_is_an_end_of_file_without_an_answer(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT %d\n" % UNUSED)
        assert host.recv(100) == b""


def test_a_host_that_connects_and_leaves_is_harmless(emulator: Emulator) -> None:
    dial(emulator.uds).close()
    connect(emulator.uds, 7).close()


CLOUD_HYPERVISOR = pytest.mark.parametrize("vmm", ["cloud-hypervisor"])


@CLOUD_HYPERVISOR
@pytest.mark.parametrize("cut", [1, 3, 8, 9, 13])
def test_cloud_hypervisor_accepts_a_line_in_two_pieces_and_payload_behind_it(emulator: Emulator, cut: int) -> None:
    line = b"CONNECT 00007\nx"
    with dial(emulator.uds) as host:
        host.sendall(line[:cut])
        time.sleep(0.1)
        host.sendall(line[cut:])
        assert accepted(host)
        assert host.recv(10) == b"x"


@CLOUD_HYPERVISOR
@pytest.mark.parametrize(
    "line",
    [b"CONNECT 7\n", b"connect 7\n", b"CONNECT \t 7 \r\n", b"CONNECT +007\n", b"CONNECT " + b"7".rjust(22) + b"\n"],
)
def test_a_spelling_that_cloud_hypervisor_accepts_is_accepted(emulator: Emulator, line: bytes) -> None:
    with dial(emulator.uds) as host:
        host.sendall(line + b"x")
        assert accepted(host)
        assert host.recv(10) == b"x"


@CLOUD_HYPERVISOR
@pytest.mark.parametrize(
    "line",
    [
        b"Connect 7\n",
        b" CONNECT 7\n",
        b"CONNECT\t7\n",
        b"CONNECT\n7\n",
        b"CONNECT 7 8\n",
        b"CONNECT \n",
        b"CONNECT \xff\n",
        b"CONNECT 4294967296\n",
        b"\n",
        b"LISTEN  7\n",
        b"CONNECT " + b"7".rjust(23) + b"\n",  # 32 bytes
        b"CONNECT " + b"0" * 30,
    ],
)
def test_a_request_that_cloud_hypervisor_refuses_is_refused(emulator: Emulator, line: bytes) -> None:
    with dial(emulator.uds) as host:
        host.sendall(line)
        assert not accepted(host)


@CLOUD_HYPERVISOR
def test_cloud_hypervisor_refuses_another_word_without_waiting_for_the_rest(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"LISTEN 7")
        assert not accepted(host)


@CLOUD_HYPERVISOR
def test_cloud_hypervisor_refuses_a_line_that_ends_too_soon_and_serves_the_next(emulator: Emulator) -> None:
    with dial(emulator.uds) as host:
        host.sendall(b"CONNECT 7")
        host.shutdown(socket.SHUT_WR)
        assert not accepted(host)
    connect(emulator.uds, 7).close()
