"""Many commands in one guest, one after another and at the same time, leave nothing behind at either end."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastvsock
from support import HANG, descriptors
from support.channels import Guest, within


@pytest.fixture
def leaves_nothing(guest: Guest) -> Iterator[None]:
    """Both ends have their descriptors and threads of before once the test is over, and the agent no children."""

    def held() -> tuple[int, int, int, int]:
        tasks = os.listdir(f"/proc/{guest.agent.pid}/task")
        return len(descriptors()), threading.active_count(), len(descriptors(guest.agent.pid)), len(tasks)

    assert within(HANG, lambda: held()[3] == 1)
    before = held()
    yield
    assert within(HANG, lambda: held() == before)
    assert not Path(f"/proc/{guest.agent.pid}/task/{guest.agent.pid}/children").read_text()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_thousand_commands_one_after_another(over_there: fastvsock.Guest) -> None:
    for number in range(1000):
        done = over_there.run(["echo", str(number)], capture_output=True)
        assert (done.returncode, done.stdout) == (0, b"%d\n" % number)


@pytest.mark.usefixtures("leaves_nothing")
def test_two_hundred_commands_at_the_same_time(over_there: fastvsock.Guest) -> None:
    processes = [over_there.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(200)]
    for number, process in enumerate(processes):
        assert process.communicate(b"%d" % number) == (b"%d" % number, None)
        assert process.wait(HANG) == 0
