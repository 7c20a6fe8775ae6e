"""Connections from the guest to the host."""

import socket

import pytest

from fastvsock.emulator import Emulator
from support.guests import SHELL, connect, drain, receive


def test_the_guest_reaches_the_hosts_socket_without_a_preamble(emulator: Emulator) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{emulator.uds}_5555")
        listener.listen()
        with emulator.connect_to_host(5555) as end:
            host, _ = listener.accept()
            with host:
                end.sendall(b"from the guest")
                assert receive(host, 14) == b"from the guest"
                host.sendall(b"from the host")
                assert receive(end, 13) == b"from the host"


def test_the_guest_gets_a_reset_where_the_host_does_not_listen(emulator: Emulator) -> None:
    with pytest.raises(ConnectionResetError, match="_5556: connection reset: nothing listens there"):
        emulator.connect_to_host(5556)


@pytest.mark.parametrize("variable", ["FASTVSOCK_HOST_SOCKET_PREFIX", "FASTVSOCK_GUEST_BACK"])
def test_a_child_finds_the_prefix_of_the_hosts_sockets_in_a_variable(emulator: Emulator, variable: str) -> None:
    with connect(emulator.uds, SHELL) as host:
        host.sendall(f'printf %s "${variable}"; exit\n'.encode())
        assert drain(host).decode() == emulator.uds
