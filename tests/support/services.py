"""What the tests of the services share: the real command as a running service, and a far end for many connections."""

import asyncio
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import HANG, Child, called, started


def service_command(name: str, *arguments: str, engine: str = "auto") -> list[str]:
    """The command line of the service under test; `arguments` may end with `--` and a command."""
    return [*called("fastvsock"), name, "--engine", engine, *arguments]


class Running:
    """A service that has told its address."""

    def __init__(self, child: Child, address: str) -> None:
        self.child, self.address = child, address

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.address.rpartition(":")[2])

    def connect(self) -> socket.socket:
        """A new client's connection."""
        return connect(self.address)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send it a signal; its exit status and what it said on stderr."""
        self.child.send_signal(number)
        return self.outcome()

    def outcome(self) -> tuple[int, str]:
        """Wait for its end; its exit status and what it said on stderr."""
        _, said = self.child.communicate(timeout=HANG)
        return self.child.returncode, said.decode()


@contextmanager
def serving(
    name: str, *arguments: str, engine: str = "auto", before: Sequence[str] = (), **options: Any
) -> Iterator[Running]:
    """The service as a child that accepts connections."""
    with started([*before, *service_command(name, *arguments, engine=engine)], **options) as child:
        line = child.stdout.readline().decode()
        assert line.startswith("listening on "), line or child.stderr.read().decode()
        yield Running(child, line.removeprefix("listening on ").strip())


def connect(address: str) -> socket.socket:
    """A client's connection to an address as the services write it."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(HANG)
        try:
            sock.connect(address.removeprefix("unix:"))
        except OSError:
            sock.close()
            raise
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=HANG)


def receive(sock: socket.socket, size: int = 1 << 62) -> bytes:
    """`size` bytes, or less at the end of file. Raises `ConnectionResetError` where there is none, but a reset."""
    parts = []
    while size and (part := sock.recv(min(size, 1 << 16))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def ask(address: str, data: bytes, size: int | None = None) -> bytes:
    """Connect, send, and receive `size` bytes, as many as were sent if not given."""
    with connect(address) as sock:
        sock.sendall(data)
        return receive(sock, len(data) if size is None else size)


def eventually(look: Callable[[], object], expected: object) -> None:
    """Look until what is expected is seen."""
    deadline = time.monotonic() + HANG
    while (seen := look()) != expected:
        assert time.monotonic() < deadline, f"still {seen}, not {expected}"
        time.sleep(0.01)


def status_of(pid: int, name: str) -> int:
    """A number of /proc/PID/status: Threads, VmRSS in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class FarEnd:
    """A VMM and a guest that echoes on every port, for as many connections as there are descriptors.

    `taken` counts its connections, `held` those that are open, `heard` what each said that has ended. A guest's port of
    0 is refused, and each answer comes after `delay` seconds.
    """

    def __init__(self, path: Path, delay: float = 0) -> None:
        self.uds, self.delay = str(path), delay
        self.taken = self.held = 0
        self.heard: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._call(self._listen())

    def _call(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(HANG)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, self.uds, backlog=4096)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        self.held += 1
        heard = []
        try:
            line = await reader.readline()
            await asyncio.sleep(self.delay)
            if line != b"CONNECT 0\n":
                writer.write(b"OK 1073741824\n")
                while data := await reader.read(1 << 16):
                    heard.append(data)
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.held -= 1
            self.heard.append(b"".join(heard))
            writer.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    def close(self) -> None:
        """End all connections and listen no more."""
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def allow_descriptors(count: int) -> None:
    """Raise this process' own limit. Raises `ValueError` where the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def run_proxy(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the proxy to its end; for a command of its own, or for an error."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        service_command("proxy", *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
        **options,
    )


def children_of(pid: int) -> list[int]:
    """The pids of a process' children."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def script_command(script: str, name: str, *arguments: str) -> list[str]:
    """The command line of a service that runs after `script` has bent what it meets."""
    return [sys.executable, "-c", f"{script}\nfrom fastvsock import cli; cli.main()", name, *arguments]


def pass_as(fd: int, number: int) -> list[str]:
    """What to run a command through so that it gets our descriptor `fd` as `number`, as from systemd."""
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), int(sys.argv[2])); "
        "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[3], sys.argv[3:])"
    )
    return [sys.executable, "-c", script, str(fd), str(number)]


def closed_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def connected(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection: the client's socket and the accepted one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        accepted, _ = server.accept()
        with client, accepted:
            yield client, accepted
