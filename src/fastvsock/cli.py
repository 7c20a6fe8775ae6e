"""The umbrella command `fastvsock`. A subcommand's module is imported only when it runs."""

import os
import sys
from importlib import import_module

from . import __version__, errors

COMMANDS = {
    "bench": "splice against copy on this machine, or through a real VM",
    "connect": "join stdin and stdout to a port inside a microVM",
    "doctor": "look for what goes wrong, and say what to do",
    "emulate": "stand in for a VMM: a hybrid vsock without a VM, for demos and tests",
    "listen": "take the connections that a guest makes to a port of the host",
    "proxy": "listen on a port or a Unix socket, and join each connection to a port inside a microVM",
    "runcvm": "install into a RunCVM bundle, check it, or print a Kubernetes manifest",
}


def main() -> None:
    """The console script. Does not return."""
    try:
        status = run(sys.argv[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        status = 0
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run the subcommand that `arguments` begins with and return the exit status."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if name == "--version":
        print(f"fastvsock {__version__}")
        return 0
    if name not in COMMANDS:
        what = f"unknown command {name!r}" if name else "a command is needed"
        print(f"fastvsock: {what}\n{_help()}", end="", file=sys.stderr)
        return errors.USAGE
    module = import_module(f".commands.{name}", __package__)
    try:
        return int(module.main(arguments[1:]))
    except errors.FastvsockError as error:
        if os.environ.get("FASTVSOCK_DEBUG") == "1":
            raise
        print(f"fastvsock: {error}", file=sys.stderr)
        return error.exit_code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: fastvsock COMMAND ...  (fastvsock COMMAND --help tells more)", "", "commands:", *lines, ""]
    )
