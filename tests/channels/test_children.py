"""The agent's children where it is process 1, which inherits the orphans of its guest too."""

import subprocess
import sys

import pytest

from support import HANG

AS_PROCESS_1 = """
import os
os.getpid = lambda: 1
from fastvsock.agent.processes import Children

children, wake = Children(), os.eventfd(0)

def ended(status):
    pid = os.fork()
    if not pid:
        os._exit(status)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid
"""


def as_process_1(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_PROCESS_1 + program], capture_output=True, timeout=HANG, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_child_that_ends_before_it_is_known_is_not_taken_for_an_orphan() -> None:
    as_process_1(
        """
def start():
    pid = ended(3)
    children.look()  # as after SIGCHLD, in another thread
    return pid

child = children.start(start, wake)
assert child.status == 3
children.forget(child)
"""
    )


@pytest.mark.parametrize("failing", [False, True])
def test_orphans_that_had_to_wait_for_a_start_or_an_end_are_taken_away(failing: bool) -> None:
    as_process_1(
        f"""
def start():
    ended(0)
    children.look()
    if {failing}:
        raise OSError
    return os.fork() or os._exit(0)

try:
    child = children.start(start, wake)
except OSError:
    pass
else:
    while child.status is None:
        children.look()
    ended(0)  # behind the zombie
    children.look()
    children.forget(child)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    pass
else:
    raise AssertionError("an orphan is left")
"""
    )
