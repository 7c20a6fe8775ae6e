"""How a service says where it listens: the port file, the ready descriptor, and systemd's sockets."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from support import HANG
from support.services import FarEnd, ask, pass_as, run_proxy, service_command, serving


def test_the_port_file_is_whole_from_its_first_moment_and_goes_with_the_proxy(far_end: FarEnd, tmp_path: Path) -> None:
    path = tmp_path / "port"
    path.write_text("an old one")
    with path.open() as old, serving("proxy", "--port-file", str(path), far_end.uds, "7") as proxy:
        assert path.read_text() == f"{proxy.port}\n"
        assert old.read() == "an old one", "it was replaced, not written over"
        assert proxy.end() == (0, "")
    assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["far.sock"]


def test_a_port_file_that_cannot_be_written_is_reported_in_a_sentence(far_end: FarEnd, tmp_path: Path) -> None:
    done = run_proxy("--port-file", str(tmp_path / "no" / "port"), far_end.uds, "7")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"cannot write the port file" in done.stderr


def test_the_ready_descriptor_gets_the_address_and_its_end(far_end: FarEnd) -> None:
    ready, its_ready = os.pipe()
    arguments = ("--ready-fd", str(its_ready), far_end.uds, "7")
    with serving("proxy", *arguments, pass_fds=[its_ready]) as proxy, os.fdopen(ready) as reader:
        os.close(its_ready)
        assert reader.read() == f"{proxy.address}\n"


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_service_manager_is_notified_of_start_and_stop(far_end: FarEnd, tmp_path: Path, abstract: bool) -> None:
    name = f"@fastvsock-{os.getpid()}-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(HANG)
        manager.bind(name.replace("@", "\0"))
        with serving("proxy", far_end.uds, "7", env=os.environ | {"NOTIFY_SOCKET": name}) as proxy:
            assert manager.recv(4096).decode() == f"READY=1\nSTATUS=Listening on {proxy.address}"
            assert proxy.end() == (0, "")
            assert manager.recv(4096) == b"STOPPING=1"


def test_sockets_passed_by_systemd_are_served(far_end: FarEnd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        before, environment = pass_as(passed.fileno(), 3), os.environ | {"LISTEN_FDS": "1"}
        with serving("proxy", far_end.uds, "7", before=before, pass_fds=[passed.fileno()], env=environment) as proxy:
            assert proxy.port == passed.getsockname()[1]
            assert ask(proxy.address, b"x") == b"x"


def test_sockets_passed_to_another_process_are_not_touched(far_end: FarEnd) -> None:
    environment = os.environ | {"LISTEN_FDS": "1", "LISTEN_PID": "1"}
    with serving("proxy", far_end.uds, "7", env=environment) as proxy:
        assert ask(proxy.address, b"x") == b"x"


def test_a_passed_descriptor_that_does_not_listen_is_reported_in_a_sentence(far_end: FarEnd) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [*pass_as(theirs.fileno(), 3), *service_command("proxy", far_end.uds, "7")],
            capture_output=True,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"LISTEN_FDS": "1"},
            timeout=HANG,
            check=False,
        )
    assert done.returncode == 1
    assert b"descriptor 3 of LISTEN_FDS is not a listening stream socket" in done.stderr
