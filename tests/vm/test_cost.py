"""A first look at cost, inside the VM: CPU seconds a MiB of the forwarder, ours with each engine and the three socats.

Time under emulation is no absolute figure; the ratios say something. Each forwarder's start is in its figure, and
printed by itself too. Nothing is asserted but that the bytes are all there.
"""

import os
import sys
import threading

import pytest

from support import COMMAND, ROOT, Endpoint, pattern, read_exactly, started, summary, write_all

pytestmark = pytest.mark.skipif(not os.environ.get("FASTVSOCK_VM"), reason="by design: runs inside the VM harness")

MIB = 8
PIPELINE = ROOT / "bench" / "peers" / "pipeline.sh"
CONNECT = [sys.executable, "-m", "fastvsock.runcvm_vsock_connect", "--linger", "inf", "--engine"]
FORWARDERS = {"splice": [*CONNECT, "splice"], "copy": [*CONNECT, "copy"], "three socats": ["sh", str(PIPELINE)]}


def up(command: list[str], uds: str, size: int) -> float:
    payload = b"sink %d\n" % size + pattern(size)
    return measured([*command, uds, str(COMMAND)], payload, summary(pattern(size)))


def down(command: list[str], uds: str, size: int) -> float:
    return measured([*command, uds, str(COMMAND)], b"source %d\n" % size, pattern(size))


def measured(command: list[str], payload: bytes, answer: bytes) -> float:
    """The CPU seconds of a forwarder and all its children, as a child of our own counts them that has no other.

    stdin stays open until the answer is there: the socats pass its end on at once, which costs the answer.
    """
    reading, writing = os.pipe()
    with started([sys.executable, "-c", ACCOUNT, str(writing), *command], stderr=None, pass_fds=[writing]) as child:
        os.close(writing)
        feeder = threading.Thread(target=write_all, args=(child.stdin.fileno(), payload))
        feeder.start()
        assert read_exactly(child.stdout.fileno(), len(answer)) == answer
        feeder.join()
        child.stdin.close()
        with os.fdopen(reading) as told:
            return float(told.read())


ACCOUNT = """
import os, resource, subprocess, sys
subprocess.run(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
os.write(int(sys.argv[1]), b"%f" % (used.ru_utime + used.ru_stime))
"""


def test_what_each_forwarder_costs(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    size = MIB << 20
    rows = []
    for name, command in FORWARDERS.items():
        start = down(command, endpoint.uds, 1)
        rows.append((name, start, up(command, endpoint.uds, size), down(command, endpoint.uds, size)))
    _, _, best_up, best_down = rows[0]
    with capsys.disabled():
        print(f"\nCPU seconds to start, and a MiB beyond that ({MIB} MiB each way; emulated: only ratios count)")
        for name, start, way_up, way_down in rows:
            print(
                f"  {name:12}  start {start:.2f}   up {max(way_up - start, 0) / MIB:.3f}   "
                f"down {max(way_down - start, 0) / MIB:.3f}   whole run, against splice: "
                f"up {way_up / best_up:.2f}x, down {way_down / best_down:.2f}x"
            )
