"""What is at the path of the socket, and how long the path is: each has its own sentence."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support import HANG, Listener, command, connecting, run
from support.sentences import outcome, sentence, wrong_usage
from support.sockets import bound, listening, take

PORT = 5003
# Root may enter every folder by these two capabilities of capability(7); bounded away, they are gone after execve(2).
WITHOUT_OVERRIDE = """
import ctypes, os, sys
prctl = ctypes.CDLL(None).prctl
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
    prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run_behind(prefix: list[str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the real command through another one that changes what it may do."""
    return subprocess.run(
        [*prefix, *command(*arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False
    )


def path_of(length: int, folder: Path) -> Path:
    """A path of `length` bytes for a socket, in `folder` or below."""
    while length - len(str(folder)) > 80:
        folder /= "d" * 49
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("s" * (length - len(str(folder)) - 1))
    assert len(os.fsencode(path)) == length
    return path


def test_a_socket_that_does_not_exist_is_named_with_its_port(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    sentence(run(uds, str(PORT)), f"{uds}: no such socket", str(PORT), "is the VMM running", "--wait")


def test_a_missing_folder_is_reported_as_a_missing_socket(tmp_path: Path) -> None:
    uds = str(tmp_path / "no" / "such" / "v.sock")
    sentence(run(uds, str(PORT)), f"{uds}: no such socket", str(PORT))


def test_a_file_in_the_place_of_a_folder_is_reported_as_a_missing_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uds = str(tmp_path / "file" / "v.sock")
    sentence(run(uds, str(PORT)), f"{uds}: no such socket", str(PORT))


def test_an_empty_path_is_reported_as_such_and_not_waited_for() -> None:
    said = "fastvsock: the path of the UDS is empty (for guest port"
    wrong_usage(run("--wait", str(10 * HANG), "", str(PORT)), said, str(PORT), "uds_path")


def test_a_socket_missing_behind_a_long_path_is_reported_like_any_other(tmp_path: Path) -> None:
    uds = f"{tmp_path}/{'d' * 200}/v.sock"
    sentence(run(uds, str(PORT)), f"{uds}: no such socket", str(PORT), "--wait")


@pytest.mark.parametrize("kind", ["a regular file", "a directory", "a FIFO", "a device"])
def test_what_is_no_socket_is_named_for_what_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if kind == "a regular file":
        path.touch()
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    else:
        path = Path("/dev/null")
    sentence(run(str(path), str(PORT)), f"{path}: not a Unix stream socket but {kind}", str(PORT), "uds_path")


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_another_type_is_no_stream_socket(kind: socket.SocketKind, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with bound(path, kind):
        sentence(run(str(path), str(PORT)), f"{path}: not a Unix stream socket but a datagram", str(PORT), "uds_path")


@pytest.mark.parametrize("forbidden", ["socket", "folder", "folder of a long path"])
def test_permission_denied_says_what_it_takes(forbidden: str, tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120 if "long" in forbidden else "d") / "v.sock"
    path.parent.mkdir()
    shut = path if forbidden == "socket" else path.parent
    with listening(path):
        shut.chmod(0)
        try:
            result = run_behind([sys.executable, "-c", WITHOUT_OVERRIDE], str(path), str(PORT))
        finally:
            shut.chmod(0o700)
    sentence(result, f"{path}: permission denied", str(PORT), "write permission", "run as the user")


def test_a_stale_socket_says_that_nobody_listens(listener: Listener) -> None:
    listener.close()
    sentence(run(listener.uds, str(PORT)), f"{listener.uds}: connection refused", str(PORT), "nobody listens", "--wait")


def test_bytes_of_a_path_that_are_not_text_are_still_reported(tmp_path: Path) -> None:
    uds = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.sock")
    sentence(run(uds, str(PORT)), "/\\xff.sock: no such socket", str(PORT))


def test_a_line_break_in_a_path_does_not_break_the_sentence(tmp_path: Path) -> None:
    sentence(run(f"{tmp_path}/two\nlines", str(PORT)), "no such socket", str(PORT))


@pytest.mark.parametrize("length", [107, 108, 250, 4000])
def test_a_path_of_any_length_is_connected_to(length: int, tmp_path: Path) -> None:
    path = path_of(length, tmp_path)
    with listening(path) as sock, connecting(str(path), PORT) as child:
        connection = take(sock)
        connection.sendall(b"OK 1073741824\npayload")
        connection.close()
        done = outcome(child)
    assert (done.returncode, done.stdout) == (1, b"payload")  # 1: the CONNECT line was never taken, which resets


def test_a_long_path_without_proc_is_too_long(tmp_path: Path) -> None:
    path = path_of(250, tmp_path)
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    no_proc = [*namespace, "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if not shutil.which("unshare"):
        pytest.skip("no unshare(1) here, by which to hide /proc")
    trial = subprocess.run([*no_proc, "true"], capture_output=True, timeout=HANG, check=False)
    if trial.returncode:
        pytest.skip(f"this machine: /proc cannot be hidden: {trial.stderr.decode().strip()}")
    with listening(path):
        sentence(run_behind(no_proc, str(path), str(PORT)), f"{path}: the path is longer than", str(PORT), "shorter")
