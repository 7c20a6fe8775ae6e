"""`fastvsock.Guest` and `fastvsock.AsyncGuest`: what `subprocess` and asyncio have, in a guest."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import fastvsock
from fastvsock.channels import aio
from fastvsock.channels import guest as guests
from support import HANG, descriptors
from support.channels import Guest, agent_on, processes_with, within
from support.services import receive


@pytest.mark.parametrize(
    "arguments",
    [
        {"args": ["sh", "-c", "echo out; echo err >&2; exit 3"], "capture_output": True},
        {"args": ["cat"], "input": b"some bytes", "stdout": subprocess.PIPE},
        {"args": ["cat"], "input": bytearray(b"some bytes"), "stdout": subprocess.PIPE},
        {"args": ["cat"], "input": "text\n", "stdout": subprocess.PIPE, "text": True},
        {"args": ["sh", "-c", "printf 'a\\r\\nb'"], "capture_output": True, "text": True},
        {"args": ["sh", "-c", "printf '\\344'"], "capture_output": True, "encoding": "latin-1"},
        {"args": ["sh", "-c", "echo out; echo err >&2"], "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        {"args": ["sh", "-c", "echo out"], "stdout": subprocess.DEVNULL},
        {"args": ["sh", "-c", "kill -TERM $$"], "capture_output": True},
        {"args": ["wc", "-c"], "stdin": subprocess.DEVNULL, "capture_output": True},
        {"args": ["pwd"], "cwd": "/usr", "capture_output": True},
        {"args": "pwd", "capture_output": True},
        {"args": ["/usr/bin/env"], "env": {"A": "1 2"}, "capture_output": True},
        {"args": [b"echo", Path("/x")], "capture_output": True},
    ],
)
def test_run_does_what_subprocess_does(over_there: fastvsock.Guest, arguments: dict[str, Any]) -> None:
    here, there = subprocess.run(**arguments), over_there.run(**arguments)
    assert (there.args, there.returncode, there.stdout, there.stderr) == (
        here.args,
        here.returncode,
        here.stdout,
        here.stderr,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"args": ["sh", "-c", "echo out; exit 3"], "check": True, "capture_output": True},
        {"args": ["nope"]},
        {"args": ["/etc/passwd"]},
        {"args": ["true"], "cwd": "/nope"},
        {"args": ["true"], "input": b"", "stdin": subprocess.DEVNULL},
        {"args": ["true"], "input": "text"},
        {"args": ["true"], "capture_output": True, "stdout": subprocess.PIPE},
        {"args": ["sh", "-c", "echo out; sleep 1000"], "timeout": 0.5, "capture_output": True},
    ],
)
def test_run_raises_what_subprocess_raises(over_there: fastvsock.Guest, arguments: dict[str, Any]) -> None:
    raised = []
    for run in subprocess.run, over_there.run:
        with pytest.raises(Exception) as caught:  # noqa: PT011 (whatever the first raises)
            run(**arguments)
        raised.append(caught.value)
    here, there = raised
    assert isinstance(there, type(here))
    for name in ("cmd", "returncode", "output", "stderr", "timeout", "errno"):
        assert getattr(here, name, None) == getattr(there, name, None)


def test_a_timeout_leaves_no_process_behind(over_there: fastvsock.Guest) -> None:
    mark = uuid.uuid4().hex
    with pytest.raises(subprocess.TimeoutExpired):
        over_there.run(["sh", "-c", "trap '' TERM HUP; while :; do sleep 0.1; done", mark], timeout=0.3)
    assert within(5, lambda: not processes_with(mark))


def test_run_takes_files(over_there: fastvsock.Guest) -> None:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(b"from a file")
        source.seek(0)
        over_there.run(["cat"], stdin=source, stdout=target)
        target.seek(0)
        assert target.read() == b"from a file"


def test_nothing_here_is_read_without_being_asked_for(over_there: fastvsock.Guest) -> None:
    assert over_there.run(["wc", "-c"], capture_output=True).stdout.strip() == b"0"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_users_and_groups(over_there: fastvsock.Guest) -> None:
    done = over_there.run(
        ["sh", "-c", "echo $(id -u) $(id -g) $(id -G)"],
        capture_output=True,
        user="nobody",
        group=12,
        extra_groups=["daemon"],
    )
    assert done.stdout == b"65534 12 12 1\n"


def test_large_output_and_input(over_there: fastvsock.Guest) -> None:
    data = os.urandom(20_000_000)
    assert over_there.run(["cat"], input=data, stdout=subprocess.PIPE).stdout == data


def test_popen_talks_with_a_running_command(over_there: fastvsock.Guest) -> None:
    with over_there.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"one")
        assert process.stdout.read(3) == b"one"
        assert process.poll() is None
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("kinds", [{"text": True}, {"encoding": "utf-8"}, {"errors": "strict"}])
def test_input_is_text_where_text_is_asked_for(over_there: fastvsock.Guest, kinds: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"input must be str .* not 'bytes'"):
        over_there.run(["cat"], input=b"bytes", **kinds)
    with (
        over_there.popen(["cat"], stdin=subprocess.PIPE, **kinds) as process,
        pytest.raises(TypeError, match=r"input must be str .* not 'bytes'"),
    ):
        process.communicate(b"bytes")


def test_input_is_bytes_where_text_is_not_asked_for(over_there: fastvsock.Guest) -> None:
    with (
        over_there.popen(["cat"], stdin=subprocess.PIPE) as process,
        pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"),
    ):
        process.communicate("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("args", [[], ()])
def test_a_command_without_words_is_a_value_error(over_there: fastvsock.Guest, args: Any) -> None:
    for start in over_there.run, over_there.popen:
        with pytest.raises(ValueError, match="args is empty: expected a command and its arguments"):
            start(args)


def test_communicate(over_there: fastvsock.Guest) -> None:
    data = "x" * 3_000_000
    process = over_there.popen(
        ["sh", "-c", "cat; echo err >&2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.communicate(data, timeout=HANG) == (data, "err\n")


def test_signals_reach_a_running_command(over_there: fastvsock.Guest) -> None:
    process = over_there.popen(["sleep", "1000"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.terminate()
    assert process.wait(HANG) == -signal.SIGTERM


def test_a_signal_is_answered_before_its_sender_goes_on(
    over_there: fastvsock.Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = over_there.popen(["sleep", "1000"])
    write = os.write

    def write_and_wait(fd: int, data: bytes) -> int:
        count = write(fd, data)
        time.sleep(0.2)
        return count

    monkeypatch.setattr(os, "write", write_and_wait)
    process.terminate()
    monkeypatch.undo()
    assert process.wait(HANG) == -signal.SIGTERM


def test_popen_of_what_is_not_there(over_there: fastvsock.Guest) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        over_there.popen(["nope"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert descriptors() == before


def test_an_agent_that_dies_is_an_exception(engine: str, tmp_path: Path) -> None:
    with agent_on(tmp_path / "agent.sock", engine=engine) as guest:
        process = fastvsock.Guest(guest.uds, engine=engine).popen(["sleep", "77"])
        guest.agent.kill()
        with pytest.raises(fastvsock.ChannelBrokenError):
            process.wait(HANG)
        with pytest.raises(ConnectionError):
            process.poll()
    for pid in processes_with("77"):
        os.kill(pid, signal.SIGKILL)


def test_nothing_is_left_of_many_commands(over_there: fastvsock.Guest) -> None:
    before, threads = len(descriptors()), threading.active_count()
    for _ in range(30):
        over_there.run(["true"], capture_output=True)
        over_there.popen(["true"], stdin=subprocess.DEVNULL).wait(HANG)
    assert within(HANG, lambda: (len(descriptors()), threading.active_count()) == (before, threads))


def test_info(over_there: fastvsock.Guest) -> None:
    found = over_there.info()
    assert found["version"] == fastvsock.__version__
    assert found["hostname"] == socket.gethostname()


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """A TCP server in the guest, which here is this machine: it reads to the end, and then answers."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.sendall(receive(sock)[::-1])

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_dial_leaves_both_half_closes_intact(over_there: fastvsock.Guest, server: tuple[str, int]) -> None:
    data = os.urandom(3_000_000)
    with over_there.dial(server) as sock:
        sock.settimeout(HANG)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == data[::-1]


def test_dial_reaches_a_unix_socket(over_there: fastvsock.Guest, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "there"))
        listener.listen()
        with over_there.dial(str(tmp_path / "there")) as sock:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"hello")
            assert sock.recv(100) == b"hello"
            assert sock.recv(100) == b""


def test_dial_to_nobody_is_refused(over_there: fastvsock.Guest, tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError):
        over_there.dial(("127.0.0.1", 1))
    with pytest.raises(FileNotFoundError):
        over_there.dial(str(tmp_path / "nope"))


def test_asyncio_has_the_same(guest: Guest, engine: str, server: tuple[str, int]) -> None:
    async def main() -> None:
        there = fastvsock.AsyncGuest(guest.uds, engine=engine)
        done = await there.run(["cat"], input="hello", text=True, stdout=subprocess.PIPE)
        assert (done.returncode, done.stdout) == (0, "hello")
        with pytest.raises(subprocess.CalledProcessError):
            await there.run(["false"], check=True)
        with pytest.raises(FileNotFoundError):
            await there.run(["nope"])
        process = await there.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert await process.communicate(b"x" * 1_000_000) == (b"x" * 1_000_000, None)
        assert process.returncode == 0
        with pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"):
            await there.run(["cat"], input="text")
        process = await there.popen(["cat"], stdin=subprocess.PIPE)
        with pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"):
            await process.communicate("text")  # type: ignore[arg-type]
        assert await process.communicate() == (None, None)
        reader, writer = await there.dial(server)
        writer.write(b"abc")
        writer.write_eof()
        assert await reader.read() == b"cba"
        writer.close()
        assert (await there.info())["engine"] == engine

    asyncio.run(main())


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_asyncio_ends_what_is_not_waited_for(guest: Guest, engine: str, how: str) -> None:
    mark = uuid.uuid4().hex

    async def main() -> None:
        there = fastvsock.AsyncGuest(guest.uds, engine=engine)
        command = ["sh", "-c", "trap '' TERM HUP; while :; do sleep 0.1; done", mark]
        if how == "timeout":
            with pytest.raises(subprocess.TimeoutExpired):
                await there.run(command, timeout=0.3)
        else:
            with pytest.raises(asyncio.CancelledError):
                await cancelled(asyncio.create_task(there.run(command)))

    async def cancelled(task: "asyncio.Task[Any]") -> None:
        await asyncio.to_thread(within, HANG, lambda: processes_with(mark))
        task.cancel()
        await task

    asyncio.run(main())
    assert within(5, lambda: not processes_with(mark))


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def examples(module: Any) -> str:
    """The code of a module's documentation."""
    text = re.sub(r"(?m)^\S.*$", "", module.__doc__)
    return textwrap.dedent(text)


@pytest.mark.parametrize("module", [guests, aio])
def test_the_examples_of_the_documentation_work(guest: Guest, module: Any) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = examples(module).replace("/run/firecracker.vsock", guest.uds)
        assert code.count("fastvsock.") + code.count("guest.") > 2
        names = {"fastvsock": fastvsock, "subprocess": subprocess, "asyncio": asyncio, "PORT": server.server_port}
        exec(compile(code, module.__file__, "exec"), names)
        server.shutdown()
