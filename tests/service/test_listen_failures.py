"""How `fastvsock listen` ends, and what it says of targets, commands and options that fail."""

import subprocess
from pathlib import Path

import pytest

from support import HANG, command, of_the_package
from support.listen import PORT, listening_on
from support.services import connect, receive, serving


def test_once_ends_with_the_childs_status(tmp_path: Path) -> None:
    with serving("listen", "--once", str(tmp_path / "v.sock"), str(PORT), "--", "sh", "-c", "exit 6") as service:
        connect(service.address).close()
        assert service.outcome()[0] == 6


def test_a_target_that_refuses_closes_the_connection_with_one_line(tmp_path: Path) -> None:
    with serving("listen", "--unix", str(tmp_path / "no"), str(tmp_path / "v.sock"), str(PORT)) as service:
        with connect(service.address) as guest:
            assert receive(guest) == b""
        status, said = service.end()
    assert status == 0
    assert said == f"fastvsock: a connection: cannot connect to {tmp_path / 'no'}: No such file or directory\n"


def test_a_command_that_is_not_there_closes_the_connection_with_one_line(tmp_path: Path) -> None:
    with serving("listen", str(tmp_path / "v.sock"), str(PORT), "--", "no-such-command") as service:
        for _ in range(2):
            with connect(service.address) as guest:
                assert receive(guest) == b""
        status, said = service.end()
    assert status == 0
    assert said == 2 * "fastvsock: a connection: cannot run no-such-command: No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tcp", "x"], "expected HOST:PORT"),
        (["--tcp", "127.0.0.1:1", "--", "cat"], "--tcp, --unix, --unix-datagram and COMMAND are mutually exclusive"),
        (["--"], "missing COMMAND after --"),
    ],
)
def test_wrong_usage_is_reported_in_a_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        listening_on(str(tmp_path / "v.sock"), *arguments), capture_output=True, timeout=HANG, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr.decode()
    assert list(tmp_path.iterdir()) == []


@of_the_package
def test_the_services_stay_out_of_the_way_of_the_connect_program() -> None:
    script = (
        "import sys; from fastvsock import runcvm_vsock_connect; print(*(m for m in sys.modules if 'fastvsock' in m))"
    )
    done = subprocess.run([command()[0], "-c", script], stdout=subprocess.PIPE, timeout=HANG, check=True)
    assert not {b"fastvsock.services.acceptor", b"fastvsock.services.handlers", b"fastvsock.services.announce"} & set(
        done.stdout.split()
    )
