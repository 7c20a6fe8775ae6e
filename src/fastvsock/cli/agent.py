"""`fastvsock agent`: the guest's side of `fastvsock exec`, `fastvsock cp` and `fastvsock forward`.

It stays in memory, so it loads what it needs: `socket` alone, with enum and selectors, is half a MiB.
"""

import os

from .. import __version__, errors, stdio
from ..agent import server
from ..agent.work import Agent
from ..channels.protocol import PORT
from ..engines import ENGINES, choose
from ..handshake import parse_port
from ..stdio import fill_closed, log, write_line
from . import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Sequence

HELP = """\
usage: fastvsock agent [options]

In a guest: do what `fastvsock exec`, `cp` and `forward` on its host ask for.
Connections of the host (CID 2) are served, and nobody else's.

options:
  --port PORT           AF_VSOCK port to listen on (default 721)
  --listen unix:PATH    a Unix socket instead (mode 0600), which answers CONNECT
                        as a VMM's does: for tests, and VMMs of other kinds
  --allow-cid CID       serve peers with this CID instead of 2; may be repeated
  --forward PORT=HOST:PORT
                        join vsock port PORT to a TCP port inside the guest, for
                        10 s also to one that is not listened on yet; repeatable
  --ready-fd N          write the address to descriptor N once it listens
  --engine ENGINE       auto, splice or copy (default: FASTVSOCK_ENGINE, or auto)
  --version             print the version
  -h, --help            print this help

exit status: 128+n ended by signal n (TERM, INT, HUP), once the sessions that it
started have ended; 1 a failure, explained on stderr in one line; 2 wrong usage.
"""

VALUES = {
    f"--{name}": name.replace("-", "_") for name in ("port", "listen", "allow-cid", "forward", "ready-fd", "engine")
}


class Options:
    """The command line, with its defaults."""

    def __init__(self) -> None:
        self.port = PORT
        self.listen = ""
        self.cids: set[int] = set()
        self.forwards: list[str] = []
        self.ready_fd: int | None = None
        self.engine: str | None = None

    def take(self, name: str, value: str) -> None:
        """Set the option `name`. Raises what ends with `USAGE`."""
        if name == "port":
            self.port = parse_port(value)
        elif name == "listen":
            self.listen = value.removeprefix("unix:")
            if not (value.startswith("unix:") and self.listen):
                raise errors.UsageError(f"invalid --listen {value!r}: expected unix:PATH")
        elif name == "forward":
            self.forwards.append(value)
        elif name == "engine":
            if value not in ENGINES:
                raise errors.UnknownEngineError(value, "--engine")
            self.engine = value
        elif not (value.isascii() and value.isdigit() and int(value) < 1 << 32):
            raise errors.UsageError(f"invalid --{name.replace('_', '-')} {value!r}: expected a number")
        elif name == "allow_cid":
            self.cids.add(int(value))
        else:
            self.ready_fd = int(value)


def main(arguments: "Sequence[str]") -> int:
    """Run the subcommand and return the exit status."""
    try:
        options = parse(arguments)
        return 0 if options is None else _serve(options)
    except Exception as error:
        sentence, status = stdio.message_and_status(error)
        if status == errors.USAGE:
            sentence += "\nusage: fastvsock agent [options] (fastvsock agent --help explains)"
        log(sentence)
        return status


def parse(arguments: "Sequence[str]") -> Options | None:
    """The options of a command line; None where help or version were printed. Raises what ends with `USAGE`."""
    options = Options()
    rest = iter(arguments)
    for word in rest:
        if word in ("-h", "--help", "--version"):
            lean.put(f"fastvsock {__version__}\n" if word == "--version" else HELP)
            return None
        if not word.startswith("-"):
            raise errors.UsageError(f"unexpected argument {errors.printable(word)}")
        for name, value in lean.take_option(word, rest, {}, VALUES):
            assert value is not None
            options.take(name, value)
    return options


def _serve(options: Options) -> int:
    fill_closed()
    if options.ready_fd is not None:
        from ..services.announce import check_ready

        check_ready(options.ready_fd)
    choose(options.engine)  # before the first connection would report a wrong one
    limit = server.prepare_process()
    forwards = _forwards(options)
    agent = Agent(limit, options.engine, forwards)
    serves: dict[_socket.socket, Callable[[_socket.socket], object]] = {}
    if options.listen:
        from ..host import addresses, listeners

        listener = listeners.open_listener(addresses.Address(path=options.listen))
        serves[listener.sock] = agent.serve
        where, close = str(listener.address), listener.close
    else:
        sock = server.open_vsock(options.port)
        serves |= {server.open_vsock(port): forward for port, forward in forwards.items()} | {sock: agent.serve}
        where, close = f"vsock:{options.port}", sock.close
    try:
        serving = server.Server(agent, serves, frozenset(options.cids or {server.HOST}))
        write_line(1, f"listening on {where}")
        if options.ready_fd is not None:
            write_line(options.ready_fd, where)
        _notify(f"READY=1\nSTATUS=Listening on {where}")
        status = serving.run()
        _notify("STOPPING=1")
    finally:
        close()
    return status


def _forwards(options: Options) -> "dict[int, Callable[[_socket.socket], object]]":
    if not options.forwards:
        return {}
    from ..agent.forwarding import Forward
    from ..host.addresses import parse_target

    return {
        parse_port(port): Forward(parse_target(f"--forward {forward!r}, its target", target), options.engine).serve
        for forward in options.forwards
        for port, _, target in (forward.partition("="),)
    }


def _notify(state: str) -> None:
    if "NOTIFY_SOCKET" in os.environ:
        from ..services.announce import notify

        notify(state)
