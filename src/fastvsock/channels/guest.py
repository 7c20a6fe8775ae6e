"""`fastvsock.Guest`: commands and connections in a guest; parameters, results and exceptions are `subprocess`'s.

Run a command, as `subprocess.run` does::

    guest = fastvsock.Guest("/run/firecracker.vsock")
    done = guest.run(["uname", "-s"], capture_output=True, text=True, check=True)
    assert done.stdout == "Linux\\n"

Untrusted code, with a limit of time, as somebody else, in an environment of its own::

    try:
        guest.run(["sh", "-c", "while :; do :; done"], timeout=0.5, user="nobody", env={"PATH": "/usr/bin:/bin"})
    except subprocess.TimeoutExpired:
        print("killed")

Talk with it while it runs::

    with guest.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write("hello\\n")
        process.stdin.close()
        assert process.stdout.read() == "hello\\n"
    assert process.returncode == 0

Reach a server inside the guest, on a port that nobody else reaches::

    with guest.dial(("127.0.0.1", PORT)) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        assert sock.recv(65536).startswith(b"HTTP/1.0 200")
"""

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import TextIOBase, TextIOWrapper
from signal import SIGKILL, SIGTERM
from time import monotonic
from typing import IO, Any, AnyStr, Generic, Literal, TypedDict, Unpack, overload

from .. import errors
from . import client, protocol
from .client import Channel, Command
from .dialling import DialRelay, dial
from .protocol import STDERR, STDIN, STDOUT, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..handshake import Path

Words = (
    str | bytes | os.PathLike[str] | os.PathLike[bytes] | Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]]
)
File = int | IO[Any] | None
PIPE, STDOUT_TOO, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
PATIENCE = 5.0  # seconds for a killed command to end
PIECE = 1 << 16  # bytes


class StartOptions(TypedDict, total=False):
    """What `popen` takes besides text, and `run` too, for type checkers."""

    stdin: File
    stdout: File
    stderr: File
    env: Mapping[str, str] | None
    cwd: str | None
    user: str | int | None
    group: str | int | None
    extra_groups: Iterable[str | int] | None


class RunOptions(StartOptions, total=False):
    """What `run` takes besides text and `input`."""

    capture_output: bool
    check: bool
    timeout: float | None


class Reachable:
    """What `Guest` and `AsyncGuest` have in common: how their guest is reached, and what its agent is asked for."""

    def __init__(
        self,
        uds: "Path",
        *,
        port: int = protocol.PORT,
        timeout: float | None = 10.0,
        wait: float = 0.0,
        engine: str | None = None,
    ) -> None:
        self._uds = uds
        self._how: dict[str, Any] = {"port": port, "timeout": timeout, "wait": wait, "engine": engine}

    def __repr__(self) -> str:
        how = "".join(f", {name}={value!r}" for name, value in self._how.items())
        return f"{type(self).__name__}({self._uds!r}{how})"

    def _open(
        self,
        args: Words,
        stdin: File,
        env: Mapping[str, str] | None,
        cwd: str | None,
        user: str | int | None,
        group: str | int | None,
        extra_groups: Iterable[str | int] | None,
    ) -> Channel:
        """A channel with the request for a command under way; raises what `Channel` does."""
        words = [args] if isinstance(args, (str, bytes, os.PathLike)) else list(args)
        if not words:
            raise ValueError("args is empty: expected a command and its arguments")
        flags = protocol.WITH_STDIN if stdin is not None and stdin != DEVNULL else 0
        who = "" if user is None else str(user)
        if group is not None:
            who += f":{group}"
        request = Request(
            protocol.EXEC,
            arguments=map(os.fsencode, words),
            variables=[os.fsencode(f"{name}={value}") for name, value in (env or {}).items()],
            directory=os.fsencode(cwd or ""),
            user=os.fsencode(who),
            groups=None if extra_groups is None else [os.fsencode(str(group)) for group in extra_groups],
            flags=flags | (protocol.CLEAR_ENVIRONMENT if env is not None else 0),
        )
        return Channel(self._uds, request, **self._how)


class Guest(Reachable):
    """A guest with `fastvsock agent` in it, behind the VMM's Unix socket `uds`.

    `port` is the agent's AF_VSOCK port. `timeout` (seconds) bounds each attempt to connect, and the time to the agent's
    first answer; for `wait` (seconds) connecting is tried again while the guest boots. `engine` is ``auto``, ``splice``
    or ``copy``. An object of this class holds no connection: each call makes its own, from any thread.
    """

    @overload
    def run(
        self,
        args: Words,
        *,
        input: str | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "subprocess.CompletedProcess[str]": ...
    @overload
    def run(
        self,
        args: Words,
        *,
        input: str | None = None,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "subprocess.CompletedProcess[str]": ...
    @overload
    def run(
        self,
        args: Words,
        *,
        input: str | None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str,
        **options: Unpack[RunOptions],
    ) -> "subprocess.CompletedProcess[str]": ...
    @overload
    def run(
        self,
        args: Words,
        *,
        input: bytes | None = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[RunOptions],
    ) -> "subprocess.CompletedProcess[bytes]": ...
    @overload
    def run(
        self,
        args: Words,
        *,
        input: str | bytes | None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "subprocess.CompletedProcess[Any]": ...
    def run(
        self,
        args: Words,
        *,
        input: str | bytes | None = None,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        capture_output: bool = False,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        check: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
    ) -> "subprocess.CompletedProcess[Any]":
        """Run a command in the guest to its end: `subprocess.run`, over there.

        Without `stdin` and `input` the command's stdin is empty; it is never this program's unless it is given. Without
        `env` the command has the agent's environment. `timeout` (seconds) is for the whole of it.

        Raises, as `subprocess.run` does, `TypeError` for an `input` that is not bytes, or not str with `text`,
        `ValueError` where there is no command, `CalledProcessError` with `check`, and `TimeoutExpired` once the command
        is killed; `StartError` where it cannot be started, which is also the built-in exception that fits
        (`FileNotFoundError`, `PermissionError`); `ChannelError`, a `ConnectionError` or `TimeoutError`, where the
        connection to the agent fails; and the errors of `fastvsock.connect`.
        """
        with Job(args, input, stdin, stdout, stderr, capture_output, (text, encoding, errors)) as job:
            deadline = None if timeout is None else monotonic() + timeout
            channel = self._open(args, job.stdin, env, cwd, user, group, extra_groups)
            try:
                status = _run(Command(channel, job.ends), deadline)
            finally:
                channel.close()
            return job.result(status, timeout, check)

    @overload
    def popen(
        self,
        args: Words,
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[StartOptions],
    ) -> "GuestProcess[str]": ...
    @overload
    def popen(
        self,
        args: Words,
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[StartOptions],
    ) -> "GuestProcess[str]": ...
    @overload
    def popen(
        self,
        args: Words,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str,
        **options: Unpack[StartOptions],
    ) -> "GuestProcess[str]": ...
    @overload
    def popen(
        self,
        args: Words,
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[StartOptions],
    ) -> "GuestProcess[bytes]": ...
    @overload
    def popen(
        self,
        args: Words,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[StartOptions],
    ) -> "GuestProcess[Any]": ...
    def popen(
        self,
        args: Words,
        *,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
    ) -> "GuestProcess[Any]":
        """Start a command in the guest: `subprocess.Popen`, over there.

        Returns once the command has started. Raises what `run` does, but for `timeout` and `check`.
        """
        channel = self._open(args, stdin, env, cwd, user, group, extra_groups)
        return GuestProcess(args, channel, stdin, stdout, stderr, text, encoding, errors)

    def dial(self, address: tuple[str, int] | str) -> socket.socket:
        """Connect to a TCP port (host and port) or a Unix socket (its path) inside the guest.

        Returns a connected socket, half-closes intact. Raises `TypeError` for any other address, `StartError`, which is
        also a `ConnectionRefusedError` where nobody listens there, and what `run` raises for connections.
        """
        channel = dial(self._uds, make_address(address), **self._how)
        try:
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            relay = DialRelay(channel, theirs)
        except BaseException:
            channel.close()
            raise

        def serve() -> None:
            try:
                relay.run()
            finally:
                theirs.close()
                channel.close()

        threading.Thread(target=serve, name="fastvsock dial", daemon=True).start()
        return ours

    def info(self) -> dict[str, str]:
        """What the agent says of itself and of the guest: version, hostname, kernel, uptime and so on."""
        how = {name: value for name, value in self._how.items() if name != "engine"}
        return client.information(self._uds, **how)


class GuestProcess(Generic[AnyStr]):
    """A command that runs in a guest, as `subprocess.Popen` has it. Its pid means nothing here, and is left out.

    `stdin`, `stdout` and `stderr` are files where PIPE was asked for. `returncode` is the exit status, or -n where
    signal n ended the command; None while it runs. To leave the ``with`` block waits for it. `on_over` is called in
    another thread once it is over.
    """

    def __init__(
        self,
        args: Words,
        channel: Channel,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        on_over: "Callable[[], object]" = lambda: None,
    ) -> None:
        self.args = args
        self._on_over = on_over
        self.stdin: IO[AnyStr] | None = None
        self.stdout: IO[AnyStr] | None = None
        self.stderr: IO[AnyStr] | None = None
        self.returncode: int | None = None
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._channel = channel
        self._files = Files()
        try:
            self._open(stdin, stdout, stderr, (encoding, errors) if text or encoding or errors else None)
            while not channel.order.has_started:
                channel.next()
        except BaseException:
            self._close()
            self._close_pipes()
            raise
        threading.Thread(target=self._serve, name="fastvsock command", daemon=True).start()

    def _open(self, stdin: File, stdout: File, stderr: File, text: "tuple[str | None, str | None] | None") -> None:
        ends: list[File] = [stdin, stdout, stderr]
        names = ("stdin", "stdout", "stderr")
        for stream in STDIN, STDOUT, STDERR:
            if ends[stream] == PIPE:
                ends[stream], ours = self._files.pipe(write=stream != STDIN)
                file = os.fdopen(ours, "wb" if stream == STDIN else "rb", -1 if text else 0)
                setattr(self, names[stream], _as_text(file, text))
        self._ends = self._files.numbers(*ends)
        self._command = Command(self._channel, self._ends)

    def _serve(self) -> None:
        try:
            self.returncode = self._command.run(self._on_end)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._close()
            self._over.set()
            self._on_over()

    def _on_end(self, stream: int) -> None:
        fd = self._ends[stream]
        if fd is not None:
            self._files.close(fd)

    def _close(self) -> None:
        self._channel.close()
        self._files.close_all()

    def poll(self) -> int | None:
        """The exit status, or None while the command runs. Raises `ChannelError` where the connection failed."""
        if self._failure is not None:
            raise self._failure
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status. Raises `TimeoutExpired` after `timeout` seconds, and `ChannelError`."""
        if not self._over.wait(timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, input: AnyStr | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send `input`, read both outputs to their ends, and wait.

        Raises `TypeError` as `subprocess` does, `TimeoutExpired`, after which it may be called again for the rest, and
        `ChannelError`.
        """
        if input is not None:
            check_input(input, is_text=isinstance(self.stdin, TextIOBase))
        readers = []
        for name in "stdout", "stderr":
            file = getattr(self, name)
            if file is not None and not hasattr(self, f"_{name}_reader"):
                setattr(self, f"_{name}_reader", _Reader(file))
            readers.append(getattr(self, f"_{name}_reader", None))
        if self.stdin is not None and not self.stdin.closed:
            threading.Thread(target=_feed, args=(self.stdin, input), daemon=True).start()
        self.wait(timeout)
        out, err = (reader and reader.result() for reader in readers)
        return out, err

    def send_signal(self, signal: int) -> None:
        """Send a signal to the command's process group, if it has not ended."""
        if not self._over.is_set():
            self._command.signal(signal)

    def abandon(self) -> None:
        """Cut the connection: the agent ends every process of the command's session, and `wait` raises."""
        try:
            self._channel.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is over

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(SIGKILL)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"

    def __enter__(self) -> "GuestProcess[AnyStr]":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close_pipes()
        self.wait()

    def _close_pipes(self) -> None:
        for file in self.stdout, self.stderr, self.stdin:
            if file:
                try:
                    file.close()
                except BrokenPipeError:
                    pass  # the command has not read all of it


class _Reader:
    """Reads a file to its end in a thread of its own."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self._data: Any = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        self._data = self._file.read()

    def result(self) -> Any:
        """All of it."""
        self._thread.join()
        self._file.close()
        return self._data


def _feed(file: IO[Any], data: str | bytes | None) -> None:
    try:
        if data:
            file.write(data)
        file.close()
    except BrokenPipeError:
        pass  # the command does not read it


class Files:
    """Descriptors of ours, each closed once."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close_all()

    def memory(self, data: bytes = b"") -> int:
        """A file in memory, at its beginning."""
        fd = os.memfd_create("fastvsock", os.MFD_CLOEXEC)
        self._open.add(fd)
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def read(self, fd: File) -> bytes:
        """All that a file in memory holds."""
        assert isinstance(fd, int)
        os.lseek(fd, 0, os.SEEK_SET)
        return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))

    def pipe(self, *, write: bool) -> tuple[int, int]:
        """The channel's end of a new pipe, which does not block and is kept here, and the caller's end."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        kept, given = (write_end, read_end) if write else (read_end, write_end)
        os.set_blocking(kept, False)
        self._open.add(kept)
        return kept, given

    def numbers(self, stdin: File, stdout: File, stderr: File) -> tuple[int | None, int | None, int | None]:
        """The three descriptors; None for an empty stdin. STDOUT for stderr is stdout's."""
        out = self._number(stdout, 1)
        err = out if stderr == STDOUT_TOO else self._number(stderr, 2)
        return None if stdin is None or stdin == DEVNULL else self._number(stdin, 0), out, err

    def _number(self, file: File, default: int) -> int:
        if file is None:
            return default
        if file == DEVNULL:
            fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._open.add(fd)
            return fd
        return file if isinstance(file, int) else file.fileno()

    def close(self, fd: int) -> None:
        """Close it, if it is ours and open."""
        with self._lock:
            if fd in self._open:
                self._open.remove(fd)
                os.close(fd)

    def close_all(self) -> None:
        """Close all of them."""
        for fd in list(self._open):
            self.close(fd)


class Job:
    """What `Guest.run` makes of its parameters. What is captured, and `input`, is a file in memory: nothing blocks."""

    def __init__(
        self,
        args: Words,
        input: str | bytes | None,
        stdin: File,
        stdout: File,
        stderr: File,
        capture_output: bool,
        text: tuple[bool | None, str | None, str | None],
    ) -> None:
        if input is not None and stdin is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        if capture_output:
            if stdout is not None or stderr is not None:
                raise ValueError("stdout and stderr arguments may not be used with capture_output.")
            stdout = stderr = PIPE
        self._args, self._text = args, text
        self._files = Files()
        self.stdin = DEVNULL if stdin == PIPE else stdin
        if input is not None:
            _, encoding, how = text
            check_input(input, is_text=any(text))
            data = input.encode(encoding or "utf-8", how or "strict") if isinstance(input, str) else input
            self.stdin = self._files.memory(data)
        captured = [self._files.memory() if kind == PIPE else None for kind in (stdout, stderr)]
        self._captured = captured
        out, err = (kind if fd is None else fd for fd, kind in zip(captured, (stdout, stderr), strict=True))
        self.files: tuple[File, File, File] = self.stdin, out, err
        self.ends = self._files.numbers(*self.files)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close_all()

    def result(self, status: int | None, timeout: float | None, check: bool) -> "subprocess.CompletedProcess[Any]":
        """What came of it; a `status` of None is a `timeout`. Raises `TimeoutExpired` and `CalledProcessError`."""
        out, err = (None if fd is None else self._decode(self._files.read(fd)) for fd in self._captured)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._args, timeout, out or None, err or None)
        done = subprocess.CompletedProcess(self._args, status, out, err)
        if check:
            done.check_returncode()
        return done

    def _decode(self, data: bytes) -> str | bytes:
        text, encoding, errors = self._text
        if not (text or encoding or errors):
            return data
        return data.decode(encoding or "utf-8", errors or "strict").replace("\r\n", "\n").replace("\r", "\n")


def _run(command: Command, deadline: float | None) -> int | None:
    """The status of a command; None where it has not ended at `deadline`, and was killed."""
    status = command.run(deadline=deadline)
    if status is None:
        command.signal(SIGKILL)
        try:
            command.run(deadline=monotonic() + PATIENCE)
        except errors.ChannelError:
            pass  # it is closed in a moment anyway
    return status


def check_input(data: object, *, is_text: bool) -> None:
    """Raise `TypeError` for input that is not str, with `is_text`, or not like bytes, without."""
    if not is_text:
        memoryview(data)  # type: ignore[arg-type]
    elif not isinstance(data, str):
        raise TypeError(f"input must be str where text, encoding or errors is given, not {type(data).__name__!r}")


def make_address(address: tuple[str, int] | str) -> str:
    match address:
        case str():
            return f"unix:{address}"
        case (str(host), int(port)):
            return f"tcp:{host}:{port}"
    raise TypeError(f"invalid address {address!r}: expected (host, port), or the path of a Unix socket, in the guest")


def _as_text(file: IO[bytes], text: "tuple[str | None, str | None] | None") -> IO[Any]:
    if text is None:
        return file
    encoding, errors = text
    return TextIOWrapper(file, encoding=encoding or "utf-8", errors=errors, write_through=True)
