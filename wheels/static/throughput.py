"""What a connection through the binary costs: CPU seconds for a GiB, splice and copy, up and down, as pyperf measures.

The twin of wheels/throughput.py for a program that is no module: the binary is a child, and the value is the CPU time
that the kernel counted for it, less what it had spent when it asked for the connection. `validate.py` compares splice
with copy within one run of this program.
"""

import argparse
import os
import shlex
import socket
import subprocess
import tempfile
from pathlib import Path

import pyperf  # type: ignore[import-untyped]

from wheels.feeding import child, drain, feed, hold, wait

GIB = 1 << 30
WAYS = ("up", "down")
ENGINES = ("splice", "copy")
PORT = "7"
ANSWER = b"OK 1073741824\n"


def main() -> None:
    """Measure each way with each engine."""
    runner = pyperf.Runner(add_cmdline_args=_pass_on, processes=1, values=3, warmups=1, loops=1)
    runner.argparser.add_argument("--connect", required=True, help="the words that run runcvm-vsock-connect")
    runner.argparser.add_argument("--mebibytes", type=int, default=256, help="payload of one transfer")
    runner.argparser.add_argument("--reverse", action="store_true", help="copy before splice")
    options = runner.parse_args()
    words, size = shlex.split(options.connect), options.mebibytes << 20
    for way in WAYS:
        for engine in reversed(ENGINES) if options.reverse else ENGINES:
            runner.bench_time_func(f"{way}, {engine}", transfers, words, way, engine, size)


def _pass_on(command: list[str], options: argparse.Namespace) -> None:
    """pyperf's workers get the same options."""
    command += [f"--connect={options.connect}", f"--mebibytes={options.mebibytes}"]
    if options.reverse:
        command.append("--reverse")


def transfers(loops: int, words: list[str], way: str, engine: str, size: int) -> float:
    """CPU seconds a GiB, times `loops`."""
    return sum(transfer(words, way, engine, size) for _ in range(loops)) * GIB / size


def transfer(words: list[str], way: str, engine: str, size: int) -> float:
    """The CPU seconds of one connection that moves `size` bytes one way, from the handshake on."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        uds = str(Path(folder) / "v.sock")
        server.bind(uds)
        server.listen()
        rfd, into = os.pipe()
        out, wfd = os.pipe()
        command = [*words, "--engine", engine, "--linger", "inf", "--stats", uds, PORT]
        program = subprocess.Popen(command, stdin=rfd, stdout=wfd, stderr=subprocess.PIPE)
        os.close(rfd)
        os.close(wfd)
        guest, _ = server.accept()
        with guest:
            while guest.recv(1) != b"\n":
                pass
            started = int(Path(f"/proc/{program.pid}/schedstat").read_text().split()[0]) / 1e9  # proc(5): nanoseconds
            guest.sendall(ANSWER)
            if way == "up":
                helpers = child(lambda: feed(into, size), out), child(lambda: drain(guest.fileno(), size), into, out)
            else:
                helpers = child(lambda: feed(guest.fileno(), size), into, out), child(lambda: drain(out, size), into)
            wait(*helpers)
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        os.close(into)
        os.close(out)
        assert program.stderr
        with program.stderr:
            said = program.stderr.read().decode()
    hold((program.returncode, f"{way} {size} bytes" in said, f", {engine};" in said), (0, True, True))
    return usage.ru_utime + usage.ru_stime - started


if __name__ == "__main__":
    main()
