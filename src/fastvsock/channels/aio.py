"""`fastvsock.AsyncGuest`: `Guest` for asyncio, with what asyncio's own subprocesses have.

A hundred commands at the same time::

    async def main():
        guest = fastvsock.AsyncGuest("/run/firecracker.vsock")
        runs = [guest.run(["echo", str(n)], capture_output=True, text=True) for n in range(100)]
        return [done.stdout for done in await asyncio.gather(*runs)]

    assert asyncio.run(main()) == [f"{n}\\n" for n in range(100)]

A stream, line by line::

    async def follow():
        guest = fastvsock.AsyncGuest("/run/firecracker.vsock")
        process = await guest.popen(["seq", "3"], stdout=asyncio.subprocess.PIPE)
        lines = [line async for line in process.stdout]
        return lines, await process.wait()

    assert asyncio.run(follow()) == ([b"1\\n", b"2\\n", b"3\\n"], 0)
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, Literal, TypeVar, Unpack, overload

from .client import Channel
from .guest import PATIENCE, PIPE, File, Guest, GuestProcess, Job, Reachable, RunOptions, Words, check_input

Made = TypeVar("Made")


class AsyncGuest(Reachable):
    """A guest with `fastvsock agent` in it, behind the VMM's Unix socket `uds`. The parameters are those of `Guest`."""

    @overload
    async def run(
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
    async def run(
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
    async def run(
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
    async def run(
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
    async def run(
        self,
        args: Words,
        *,
        input: str | bytes | None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> "subprocess.CompletedProcess[Any]": ...
    async def run(
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
        """`Guest.run`. To cancel it ends the command."""
        with Job(args, input, stdin, stdout, stderr, capture_output, (text, encoding, errors)) as job:
            process = await self._start(
                args, lambda: self._open(args, job.stdin, env, cwd, user, group, extra_groups), *job.files
            )
            try:
                async with asyncio.timeout(timeout):
                    status: int | None = await process.wait()
            except TimeoutError:
                process.kill()
                await process.settle()
                status = None
            except BaseException:
                await process.settle()
                raise
            return job.result(status, timeout, check)

    async def popen(
        self,
        args: Words,
        *,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
    ) -> "AsyncGuestProcess":
        """Start a command: `asyncio.create_subprocess_exec`, over there. Raises what `Guest.popen` does."""
        process = await self._start(
            args, lambda: self._open(args, stdin, env, cwd, user, group, extra_groups), stdin, stdout, stderr
        )
        await process.connect()
        return process

    async def _start(
        self, args: Words, connect: Callable[[], Channel], stdin: File, stdout: File, stderr: File
    ) -> "AsyncGuestProcess":
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def on_over() -> None:
            try:
                loop.call_soon_threadsafe(over.set)
            except RuntimeError:
                pass  # the loop is closed, and nobody waits

        def start() -> GuestProcess[bytes]:
            return GuestProcess(args, connect(), stdin, stdout, stderr, on_over=on_over)

        return AsyncGuestProcess(await _in_thread(start, GuestProcess.abandon), over)

    async def dial(self, address: tuple[str, int] | str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a TCP port (host and port) or a Unix socket (its path) inside the guest: a reader and a writer.

        Raises what `Guest.dial` does.
        """
        sock = await _in_thread(lambda: Guest(self._uds, **self._how).dial(address), lambda sock: sock.close())
        return await asyncio.open_unix_connection(sock=sock)

    async def info(self) -> dict[str, str]:
        """`Guest.info`."""
        return await asyncio.to_thread(Guest(self._uds, **self._how).info)


async def _in_thread(make: Callable[[], Made], undo: Callable[[Made], object]) -> Made:
    """What `make` returns, called in a thread; where nobody waits for it any more it is undone."""
    future = asyncio.get_running_loop().run_in_executor(None, make)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: done.cancelled() or done.exception() or undo(done.result()))
        raise


class AsyncGuestProcess:
    """A command that runs in a guest, as `asyncio.subprocess.Process` has it.

    `stdin` is a `StreamWriter`, `stdout` and `stderr` are `StreamReader`, where PIPE was asked for.
    """

    def __init__(self, process: GuestProcess[bytes], over: asyncio.Event) -> None:
        self._process, self._over = process, over
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None

    async def connect(self) -> None:
        """Make streams of the pipes. Called by `AsyncGuest.popen`."""
        loop = asyncio.get_running_loop()
        process = self._process
        if process.stdin:
            transport, protocol = await loop.connect_write_pipe(
                lambda: asyncio.streams.FlowControlMixin(loop), process.stdin
            )
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        self.stdout = await _reader(process.stdout)
        self.stderr = await _reader(process.stderr)

    @property
    def returncode(self) -> int | None:
        """The exit status, -n where signal n ended the command; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """The exit status. Raises `ChannelError` where the connection failed."""
        await self._over.wait()
        return self._process.wait()

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Send `input`, read both outputs to their ends, and wait. Raises `TypeError` where it is not like bytes."""
        if input is not None:
            check_input(input, is_text=False)
        out, err, _ = await asyncio.gather(_read(self.stdout), _read(self.stderr), self._feed(input))
        await self.wait()
        return out, err

    async def _feed(self, data: bytes | None) -> None:
        if self.stdin is None:
            return
        try:
            if data:
                self.stdin.write(data)
                await self.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the command does not read it
        self.stdin.close()

    async def settle(self) -> None:
        """See that a command which was killed, or is nobody's any more, ends soon: its connection is cut."""
        try:
            async with asyncio.timeout(PATIENCE if self._was_killed else 0):
                await self._over.wait()
        except TimeoutError:
            self._process.abandon()
            await self._over.wait()

    _was_killed = False

    def send_signal(self, signal: int) -> None:
        """Send a signal to the command's process group, if it has not ended."""
        self._process.send_signal(signal)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._was_killed = True
        self._process.send_signal(signal.SIGKILL)


async def _reader(file: IO[bytes] | None) -> asyncio.StreamReader | None:
    if file is None:
        return None
    os.set_blocking(file.fileno(), False)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    return reader


async def _read(reader: asyncio.StreamReader | None) -> bytes | None:
    return None if reader is None else await reader.read()


__all__ = ["PIPE", "AsyncGuest", "AsyncGuestProcess"]
