"""Each error of the real command: its exit code, its one sentence on stderr, and nothing on stdout."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fastvsock
from support import HANG, Listener, command, connecting, run, started

PORT = 5003
OPEN_FILES = resource.RLIMIT_NOFILE

# Root may enter every folder by these two capabilities of capability(7); bounded away, they are gone after execve(2).
WITHOUT_OVERRIDE = """
import ctypes, os, sys
prctl = ctypes.CDLL(None).prctl
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
    prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

# The command with one of its parts broken, which is how an error that nobody thought of looks.
BROKEN = """
import fastvsock.handshake
def fail(*arguments): raise {error}
fastvsock.handshake.connect = fail
from fastvsock.entry import main
main()
"""


def sentence(result: subprocess.CompletedProcess[bytes], *words: str, code: int = 1) -> str:
    """The one line that a failure says; `words` must be in it, in this order."""
    line = result.stderr.decode()
    assert result.returncode == code, line
    assert result.stdout == b""
    assert line.startswith("fastvsock: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    rest = line
    for word in words:
        assert word in rest, line
        rest = rest.partition(word)[2]
    return line


def outcome(child: subprocess.Popen[bytes]) -> subprocess.CompletedProcess[bytes]:
    """What a running child ends with."""
    out, err = child.communicate(timeout=HANG)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def run_behind(prefix: list[str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the real command through another one that changes what it may do."""
    return subprocess.run(
        [*prefix, *command(*arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False
    )


@contextmanager
def bound(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A Unix socket at `path` that does not listen. A path of any length: bind(2) gets its folder as a descriptor."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.settimeout(HANG)
            sock.bind(f"/proc/self/fd/{folder}/{path.name}")
            yield sock
    finally:
        os.close(folder)


@contextmanager
def listening(path: Path, backlog: int = 128) -> Iterator[socket.socket]:
    """A Unix stream socket at `path` that listens, and answers nothing by itself."""
    with bound(path) as sock:
        sock.listen(backlog)
        yield sock


def path_of(length: int, folder: Path) -> Path:
    """A path of `length` bytes for a socket, in `folder` or below."""
    while length - len(str(folder)) > 80:
        folder /= "d" * 49
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("s" * (length - len(str(folder)) - 1))
    assert len(os.fsencode(path)) == length
    return path


def take(sock: socket.socket) -> socket.socket:
    """Accept a connection and see its CONNECT line without taking it, as a VMM that dies just then."""
    connection, _ = sock.accept()
    connection.settimeout(HANG)
    connection.recv(1, socket.MSG_PEEK)
    return connection


# What is at the path


def test_a_socket_that_does_not_exist_is_named_with_its_port(tmp_path: Path) -> None:
    uds = str(tmp_path / "v.sock")
    sentence(run(uds, str(PORT)), f"{uds}: no such socket", str(PORT), "is the VMM running", "--wait")


def test_a_missing_folder_is_told_as_a_missing_socket(tmp_path: Path) -> None:
    uds = str(tmp_path / "no" / "such" / "v.sock")
    sentence(run(uds, str(PORT)), f"{uds}: no such socket", str(PORT))


def test_a_file_in_the_place_of_a_folder_is_told_as_a_missing_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uds = str(tmp_path / "file" / "v.sock")
    sentence(run(uds, str(PORT)), f"{uds}: no such socket", str(PORT))


def test_an_empty_path_is_told_as_such_and_not_waited_for() -> None:
    told = "fastvsock: the path of the UDS is empty (for guest port"
    sentence(run("--wait", str(10 * HANG), "", str(PORT)), told, str(PORT), "uds_path")


def test_a_socket_missing_behind_a_long_path_is_told_like_any_other(tmp_path: Path) -> None:
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


def test_bytes_of_a_path_that_are_no_text_are_still_told(tmp_path: Path) -> None:
    uds = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.sock")
    sentence(run(uds, str(PORT)), "/\\xff.sock: no such socket", str(PORT))


def test_a_line_break_in_a_path_does_not_break_the_sentence(tmp_path: Path) -> None:
    sentence(run(f"{tmp_path}/two\nlines", str(PORT)), "no such socket", str(PORT))


# Long paths


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
        pytest.skip(f"/proc cannot be hidden here: {trial.stderr.decode().strip()}")
    with listening(path):
        sentence(run_behind(no_proc, str(path), str(PORT)), f"{path}: the path is longer than", str(PORT), "shorter")


# What the VMM answers


def test_no_answer_in_time_is_told_with_the_time(listener: Listener) -> None:
    done = run("--timeout", "0.3", listener.uds, str(PORT))
    sentence(done, f"{listener.uds}: no answer for guest port {PORT} within 0.3 s", "--timeout")


def test_half_an_answer_in_time_is_no_answer(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--timeout", "1") as child, listener.accept(b"OK 10737"):
        sentence(outcome(child), f"{listener.uds}: no answer for guest port {PORT} within 1 s")


def test_a_close_without_ok_is_a_refusal(listener: Listener) -> None:
    with connecting(listener.uds, PORT) as child:
        listener.accept(b"").close()
        sentence(outcome(child), f"{listener.uds}: guest port {PORT} refused", "nothing is listening", "--wait")


def test_a_close_in_the_middle_of_ok_is_a_refusal(listener: Listener) -> None:
    with connecting(listener.uds, PORT) as child:
        listener.accept(b"OK 1073").close()
        sentence(outcome(child), f"{listener.uds}: guest port {PORT} refused", "--wait")


def test_a_reset_without_ok_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, connecting(str(path), PORT) as child:
        take(sock).close()  # unix_release_sock(): to close with bytes unread resets
        sentence(outcome(child), f"{path}: guest port {PORT} refused", "nothing is listening", "--wait")


@pytest.mark.parametrize(
    "answer",
    [
        b"\n",
        b"OK\n",
        b"OK \n",
        b"ok 5\n",
        b"OK  5\n",
        b"OK 5 \n",
        b"OK -5\n",
        b"OK 5\r\n",
        b"OK 12345678901\n",
        b"OK 1073741824 ",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-dropbear\r\n",
        b"\0\xff\x80\x1b[31m",
        b"garbage without an end" * 1000,
    ],
    ids=repr,
)
def test_an_answer_that_is_not_ok_is_shown(answer: bytes, listener: Listener) -> None:
    with connecting(listener.uds, PORT) as child:
        shown = repr(answer.decode("latin-1"))[1:4]
        with listener.accept(answer):  # and stays open: the sentence must not wait for the end
            done = outcome(child)
    sentence(done, f"{listener.uds}: the answer to CONNECT {PORT} was", shown, "not 'OK <n>'", "uds_path")


# The port


@pytest.mark.parametrize("port", ["", " ", "ssh", "5003x", "0x10", "5e3", "1_000", "+5", " 5", "5.0", "4294967296"])
def test_a_port_that_is_no_guest_port_is_told(port: str, tmp_path: Path) -> None:
    sentence(run(str(tmp_path / "v.sock"), port), f"{port!r} is no guest port", "0 to 4294967295")


@pytest.mark.parametrize("port", ["\uff19", "\u0663", "\xb2"])
def test_digits_that_are_not_ascii_are_no_port(port: str, tmp_path: Path) -> None:
    sentence(run(str(tmp_path / "v.sock"), port), "is no guest port", "0 to 4294967295")


def test_a_port_of_many_digits_is_refused_at_once(tmp_path: Path) -> None:
    sentence(run(str(tmp_path / "v.sock"), "9" * 100_000), "is no guest port", "0 to 4294967295")


@pytest.mark.parametrize("arguments", [["-1"], ["--", "-1"]], ids=" ".join)
def test_a_negative_port_is_no_port_rather_than_an_option(arguments: list[str], tmp_path: Path) -> None:
    sentence(run(str(tmp_path / "v.sock"), *arguments), "'-1' is no guest port", "0 to 4294967295")


@pytest.mark.parametrize(("port", "line"), [("0", b"0"), ("4294967295", b"4294967295"), ("05003", b"5003")])
def test_the_first_and_the_last_port_are_asked_for(port: str, line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, started(command(str(path), port)) as child:
        with take(sock) as connection:
            assert connection.recv(100) == b"CONNECT " + line + b"\n"
        sentence(outcome(child), f"guest port {line.decode()} refused")


# What this machine runs out of


def test_no_descriptor_left_for_the_socket_is_told(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, connecting(str(path), PORT, "--wait", "60") as child:
        connection = take(sock)
        resource.prlimit(child.pid, OPEN_FILES, (3, 3))  # what is open stays open: the next attempt gets none
        connection.close()
        sentence(outcome(child), f"{path}: cannot connect to guest port {PORT}: Too many open files")


def test_no_descriptor_left_for_the_relay_is_told(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "v.sock"
    with listening(path) as sock, connecting(str(path), PORT, engine=engine) as child, take(sock) as connection:
        resource.prlimit(child.pid, OPEN_FILES, (4, 4))
        connection.sendall(b"OK 1073741824\n")
        sentence(outcome(child), "Too many open files")


def fill(path: Path) -> list[socket.socket]:
    """Connections to `path` until its listener's backlog has no room."""
    waiting: list[socket.socket] = []
    while True:
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        try:
            one.connect(str(path))
        except BlockingIOError:
            one.close()
            return waiting
        waiting.append(one)


def test_a_full_backlog_is_tried_until_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path, 0):
        waiting = fill(path)
        done = run("--timeout", "0.3", str(path), str(PORT))
        sentence(done, f"{path}: no answer for guest port {PORT} within 0.3 s")
        for one in waiting:
            one.close()


def test_a_full_backlog_that_empties_in_time_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with listening(path, 0) as sock:
        waiting = fill(path)
        with connecting(str(path), PORT, "--timeout", str(HANG)) as child:
            time.sleep(0.3)  # for the child to meet EAGAIN; slower, and this is only an easier test
            for one in waiting:
                sock.accept()[0].close()
                one.close()
            with take(sock) as connection:
                connection.recv(100)
                connection.sendall(b"OK 1073741824\npayload")
            done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"payload", b"")


def test_no_space_for_the_output_is_told(listener: Listener, engine: str) -> None:
    with (
        open("/dev/full", "wb") as full,
        connecting(listener.uds, PORT, engine=engine, stdout=full) as child,
        listener.accept(b"OK 1073741824\npayload"),
    ):
        _, err = child.communicate(timeout=HANG)
    done = subprocess.CompletedProcess(child.args, child.returncode, b"", err)
    sentence(done, "cannot write the output: No space left on device")


def test_a_stdin_that_cannot_be_read_is_told(listener: Listener, engine: str, tmp_path: Path) -> None:
    # Not a directory: with that as stdin CPython refuses to start.
    with (
        open(tmp_path / "file", "wb") as unreadable,
        connecting(listener.uds, PORT, engine=engine, stdin=unreadable) as child,
        listener.accept(),
    ):
        sentence(outcome(child), "cannot read the input: Bad file descriptor")


def test_a_stdin_that_is_null_and_open_for_writing_only_cannot_be_read(listener: Listener, engine: str) -> None:
    with (
        open(os.devnull, "wb") as unreadable,
        connecting(listener.uds, PORT, engine=engine, stdin=unreadable) as child,
        listener.accept(),
    ):
        sentence(outcome(child), "cannot read the input: Bad file descriptor")


# A closed stdout

CLOSED = ["sh", "-c", 'exec "$@" >&-', "sh"]


@pytest.mark.parametrize("program", ["fastvsock.entry", "fastvsock"])
def test_the_first_byte_for_a_closed_stdout_ends_it_as_one_for_a_closed_pipe_does(
    listener: Listener, engine: str, program: str
) -> None:
    words = [sys.executable, "-m", program, *(["connect"] if program == "fastvsock" else [])]
    with (
        started([*CLOSED, *words, "--engine", engine, listener.uds, str(PORT)]) as child,
        listener.accept(b"OK 1073741824\n") as far,
    ):
        child.stdin.write(b"goes up all the same")
        assert far.recv(100) == b"goes up all the same"
        far.sendall(b"x")
        assert (child.wait(HANG), child.stderr.read()) == (0, b"")


def test_a_closed_stdout_does_no_harm_where_nothing_is_said(listener: Listener, engine: str) -> None:
    with started([*CLOSED, *command(listener.uds, str(PORT), engine=engine)]) as child, listener.accept() as far:
        child.stdin.write(b"up")
        assert far.recv(100) == b"up"
        far.close()
        assert (child.wait(HANG), child.stderr.read()) == (0, b"")


def test_splice_is_not_there_without_its_extension(listener: Listener, tmp_path: Path) -> None:
    source = Path(fastvsock.__file__).parent
    shutil.copytree(source, tmp_path / "fastvsock", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with connecting(listener.uds, PORT, engine="splice", env=environment) as child, listener.accept():
        done = outcome(child)
    sentence(done, "the splice engine is not there", "install a wheel", "C compiler", "engine auto")
    with connecting(listener.uds, PORT, engine="auto", env=environment) as child:
        with listener.accept() as connection:
            connection.sendall(b"payload")
        done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"payload", b"")


def test_an_engine_that_the_environment_misspells_is_told(listener: Listener) -> None:
    arguments = [sys.executable, "-m", "fastvsock.entry", listener.uds, str(PORT)]
    with started(arguments, env={**os.environ, "FASTVSOCK_ENGINE": "warp"}) as child, listener.accept():
        sentence(outcome(child), "'warp' is no engine", "auto, splice or copy", "environment's FASTVSOCK_ENGINE")


@pytest.mark.parametrize("error", ["ZeroDivisionError('so')", "OSError(5, 'so')"])
@pytest.mark.parametrize("debug", [False, True])
def test_only_debugging_shows_a_traceback(error: str, debug: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(error=error), "v.sock", str(PORT)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "FASTVSOCK_DEBUG": "1" if debug else ""},
        timeout=HANG,
        check=False,
    )
    if debug:
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"Traceback (most recent call last):")
        assert b"so" in done.stderr.splitlines()[-1]
    else:
        sentence(done, "unexpected", error.partition("(")[0], "so", "FASTVSOCK_DEBUG=1")


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "UDS and PORT are needed, not 0 arguments"),
        (["v.sock"], "UDS and PORT are needed, not 1 argument"),
        (["v.sock", "1", "2"], "UDS and PORT are needed, not 3 arguments"),
        (["--", "v.sock", "1", "--stats"], "UDS and PORT are needed, not 3 arguments"),
        (["--fast", "v.sock", "1"], "unknown option --fast"),
        (["-v", "v.sock", "1"], "unknown option -v"),
        (["--stats=yes", "v.sock", "1"], "unknown option --stats=yes"),
        (["v.sock", "1", "--wait"], "--wait needs a value"),
        (["v.sock", "1", "--engine"], "--engine needs a value"),
        (["--engine=warp", "v.sock", "1"], "--engine is auto, splice or copy, not 'warp'"),
        (["--engine=", "v.sock", "1"], "--engine is auto, splice or copy, not ''"),
        *(
            ([f"{name}={value}", "v.sock", "1"], f"{name} is a number of seconds, {allowed}, not {value!r}")
            for name, allowed, values in (
                ("--timeout", "more than 0 and at most 1000000", ["0", "inf"]),
                ("--wait", "0 to 1000000", ["inf"]),
                ("--linger", "0 to 1000000 or inf", []),
            )
            for value in ("", "soon", "nan", "-1", "-inf", "1e30", "1000001", *values)
        ),
        (["--a\nb", "v.sock", "1"], r"unknown option --a\nb"),
        ([b"--\xff", "v.sock", "1"], r"unknown option --\xff"),
    ],
    ids=lambda value: ascii(" ".join(map(str, value))) or "nothing" if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_shows_the_usage(arguments: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastvsock.entry", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    first, usage = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert first == f"fastvsock: {told}"
    assert usage.startswith("usage: ")
    assert "UDS PORT" in usage


# Every right spelling


@pytest.mark.parametrize(
    "arguments",
    [
        ["--timeout", "30", "--wait", "1", "--linger", "2", "--engine", "copy", "--stats", "v.sock", "5003"],
        ["--timeout=30", "--wait=1.5", "--linger=inf", "--engine=copy", "--stats", "v.sock", "5003"],
        ["v.sock", "5003", "--timeout=3e1", "--wait", "0", "--linger", "0", "--engine", "copy", "--stats"],
        ["v.sock", "--stats", "5003", "--engine=copy"],
        ["--engine=splice", "--stats", "--engine=copy", "--", "v.sock", "5003"],
        ["--stats", "--engine", "copy", "--", "--stats", "5003"],
    ],
    ids=" ".join,
)
def test_options_may_be_spelled_and_placed_in_every_usual_way(arguments: list[str], tmp_path: Path) -> None:
    name = "--stats" if arguments[-2:-1] == ["--stats"] else "v.sock"
    with (
        listening(tmp_path / name) as sock,
        started([sys.executable, "-m", "fastvsock.entry", *arguments], cwd=tmp_path) as child,
    ):
        with take(sock) as connection:
            assert connection.recv(100) == b"CONNECT 5003\n"
            connection.sendall(b"OK 1073741824\npayload")
        done = outcome(child)
    assert (done.returncode, done.stdout) == (0, b"payload")
    line = done.stderr.decode()
    assert line.startswith("fastvsock: ")
    assert line.count("\n") == 1
    assert "copy" in line
    assert "splice" not in line


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["v.sock", "--help"]], ids=" ".join)
def test_help_goes_to_stdout_and_names_every_option(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    for option in (b"--timeout", b"--wait", b"--linger", b"--engine", b"--stats", b"--version", b"--help"):
        assert option in done.stdout
    assert done.stdout.startswith(b"usage: runcvm-vsock-connect")


def test_the_version_goes_to_stdout() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"runcvm-vsock-connect {fastvsock.__version__}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("module", ["fastvsock.entry", "fastvsock"])
def test_a_reader_that_has_gone_is_no_failure_of_help(option: str, module: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with started([sys.executable, "-m", module, option], stdout=writing) as child:
        os.close(writing)
        done = outcome(child)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_is_a_failure(option: str) -> None:
    with open("/dev/full", "wb") as full:
        done = run(option, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"fastvsock: cannot write the output: No space left on device\n")


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("module", ["fastvsock.entry", "fastvsock"])
def test_a_closed_stdout_is_no_failure_of_help(option: str, module: str) -> None:
    arguments = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", module, option]
    done = subprocess.run(arguments, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --wait


def test_wait_goes_through_all_that_a_booting_guest_shows(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with connecting(str(path), PORT, "--wait", str(HANG)) as child:
        time.sleep(0.3)  # no such socket; too short for a slow child, and this is only an easier test
        with bound(path) as sock:
            time.sleep(0.3)  # connection refused
            sock.listen()
            take(sock).close()  # reset
            with take(sock) as connection:  # closed without OK
                connection.recv(100)
            with take(sock) as connection:
                connection.recv(100)
                connection.sendall(b"OK 1073741824\npayload")
            done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"payload", b"")


def test_wait_gives_up_with_the_last_cause(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--wait", "1") as child:
        connection = listener.accept(b"")
        os.unlink(listener.uds)
        connection.close()  # only now the first attempt fails, as refused; every later one finds no socket
        sentence(outcome(child), f"{listener.uds}: no such socket", str(PORT))


def test_wait_waits_as_long_as_it_says(listener: Listener) -> None:
    listener.close()
    before = time.monotonic()
    sentence(run("--wait", "1", listener.uds, str(PORT)), "connection refused")
    assert time.monotonic() - before >= 1


def test_wait_does_not_retry_what_waiting_cannot_mend(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--wait", str(HANG)) as child, listener.accept(b"SSH-2.0\n"):
        sentence(outcome(child), "the answer to CONNECT")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_quietly(number: signal.Signals, listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--wait", str(HANG)) as child:
        listener.accept(b"").close()
        child.send_signal(number)
        done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")


def test_a_signal_ends_the_handshake_quietly(listener: Listener) -> None:
    with connecting(listener.uds, PORT, "--timeout", str(HANG)) as child, listener.accept(b"OK 10"):
        child.send_signal(signal.SIGINT)
        done = outcome(child)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
