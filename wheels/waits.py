"""What a user waits for: a program's start to its first byte, and `true` in a guest by exec and by dbclient.

The programs take turns in each round, so that a ratio is of two that ran within a second. dbclient gets the connection
from the same program and meets a dropbear behind its emulator; exec meets its agent. Where no dropbear is installed, or
a program of another machine is emulated, that part is left out.

`validate.py` starts this in the environment `run`, with the words of both commands and of an interpreter as JSON, and
reads one JSON object.
"""

import argparse
import getpass
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.ssh import DROPBEAR, Guest, make_keys, missing_for_guest

HANG = 60.0  # seconds
Turns = dict[str, Callable[[], float]]


def main() -> None:
    """Measure, and print milliseconds of each round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("words", type=json.loads, help="those of fastvsock, runcvm-vsock-connect and an interpreter")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"start": in_turns(starts(options.words, Path(folder)), options.rounds)}
        if not missing_for_guest():
            with execs(options.words, Path(folder)) as turns:
                found["exec"] = in_turns(turns, options.rounds)
    print(json.dumps(found))


def in_turns(turns: Turns, rounds: int) -> list[dict[str, float]]:
    """What each takes in each round, in ms; a first round is not counted."""
    return [{name: 1000 * turn() for name, turn in turns.items()} for _ in range(rounds + 1)][1:]


def starts(words: dict[str, list[str]], folder: Path) -> Turns:
    """The program, to the byte that a guest sent; an interpreter, to one of its own."""
    byte = "import os; os.write(1, b'x')"
    return {
        "program": lambda: from_guest(words["runcvm-vsock-connect"], str(folder / "v.sock")),
        "interpreter": lambda: to_first_byte([*words["interpreter"], "-c", byte]),
    }


def from_guest(words: list[str], uds: str) -> float:
    """Seconds until the program has written what a guest said right behind the VMM's answer."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(HANG)
        server.bind(uds)
        server.listen()

        def guest() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(1) != b"\n":
                    pass
                connection.sendall(b"OK 1073741824\nx")

        spent = to_first_byte([*words, uds, "7"], guest)
    os.unlink(uds)
    return spent


def to_first_byte(words: list[str], other: Callable[[], None] = lambda: None) -> float:
    """Seconds from the start of a command to its first byte on stdout. Raises `RuntimeError` where it fails."""
    begin = time.perf_counter()
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        assert child.stdout
        other()
        byte = child.stdout.read(1)
        spent = time.perf_counter() - begin
    if byte != b"x" or child.returncode:
        raise RuntimeError(f"{words[0]} wrote {byte!r} and ended with {child.returncode}")
    return spent


@contextmanager
def execs(words: dict[str, list[str]], folder: Path) -> Iterator[Turns]:
    """`true` in a guest, by both ways, whose servers run inside the block."""
    fastvsock, connect, user = words["fastvsock"], words["runcvm-vsock-connect"], getpass.getuser()
    make_keys(folder, user)
    agent, vmm = str(folder / "agent.sock"), str(folder / "vmm.sock")
    client = Guest(vmm, user, str(folder / "key.dropbear")).dbclient("-J", "&3")
    with ExitStack() as undo:
        undo.enter_context(serving([*fastvsock, "agent", "--listen", f"unix:{agent}"]))
        undo.enter_context(serving([*fastvsock, "emulate", vmm, f"--exec={DROPBEAR}=sh {folder}/dropbear.sh"]))
        yield {
            "exec": lambda: to_end([*fastvsock, "exec", agent, "true"]),
            "dbclient": lambda: to_end([*connect, vmm, str(DROPBEAR), "--", *client, "true"]),
        }


@contextmanager
def serving(words: list[str]) -> Iterator[None]:
    """A server runs inside the block, from the line on that says that it listens."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            if not server.stdout.readline():
                raise RuntimeError(f"{words[0]} does not serve")
            yield
        finally:
            server.terminate()


def to_end(words: list[str]) -> float:
    """Seconds that a command takes. Raises `subprocess.CalledProcessError` where it fails."""
    begin = time.perf_counter()
    subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
