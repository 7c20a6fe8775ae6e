"""Runs pytest on one mutant, in the copy that this file belongs to: `run_tests.py SECONDS TEST...`.

The run has a TMPDIR and base folders of its own, and at its end nothing that it started is left: this process is made
the parent of all orphans below it (prctl(2), PR_SET_CHILD_SUBREAPER), and ends those. It ends when its own parent does.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

COPY = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ONE_TEST = 20  # seconds, many times what any of these tests takes; a mutant that hangs fails there
OUT_OF_TIME = "out of time: the limit of a mutant has passed"


def main(seconds: float, tests: list[str]) -> int:
    signal.signal(signal.SIGTERM, _end)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    folder = tempfile.mkdtemp(prefix="fv-")  # short: a Unix socket's path has 108 bytes
    words = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "mutants.quick"]
    words += [f"--basetemp={folder}/base", f"--timeout={ONE_TEST}", *tests]
    try:
        return subprocess.Popen(words, cwd=COPY, env={**os.environ, "TMPDIR": folder}).wait(seconds)
    except subprocess.TimeoutExpired:
        print(OUT_OF_TIME)
        return 1
    finally:
        _end_all()
        shutil.rmtree(folder, ignore_errors=True)


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # each thread of the parent that ends may send one
    sys.exit("run_tests: ended by SIGTERM")


def _end_all() -> None:
    """End the children, and theirs, which become ours when their parents have ended."""
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        for pid in children:
            os.waitpid(int(pid), 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
