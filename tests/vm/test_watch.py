"""What watch.py does for the tests in L1, tried on the emulator: it runs a test again only where the guest has died."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import watch

from support import HANG, started

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("FASTVSOCK_VM")), reason="by design: runs outside, where the emulator is quick"
)

BOOT = """\
#!{python}
import os, socket, sys, threading, time
from fastvsock import cli

def ready():
    while socket.socket(socket.AF_UNIX).connect_ex(sys.argv[2]):
        time.sleep(0.01)
    print("guest ready", flush=True)

with open({pids!r}, "a") as pids:
    print(os.getpid(), file=pids)
sys.argv[1:] = ["emulate", *sys.argv[1:], "--exec=7=cat"]
threading.Thread(target=ready, daemon=True).start()
sys.exit(cli.main())
"""
KILL_THE_GUEST = "os.kill(int(Path({pids!r}).read_text().split()[-1]), 9)"
PREAMBLE = "import os, time\nfrom pathlib import Path\n"


@dataclass
class Machine:
    """A guest that can be killed, in a folder of its own."""

    folder: Path

    @property
    def boots(self) -> list[int]:
        return [int(pid) for pid in (self.folder / "pids").read_text().split()]

    @property
    def guest(self) -> watch.Guest:
        return watch.Guest(str(self.folder / "v.sock"), str(self.folder / "boot.sh"), self.folder / "console.log")

    def pytest(self, test: str) -> tuple[int, str]:
        """Run one test under the plugin; `KILL` in it kills the guest."""
        kill = KILL_THE_GUEST.format(pids=str(self.folder / "pids"))
        body = f"    with open({str(self.folder / 'runs')!r}, 'a') as runs:\n        runs.write('run ')\n"
        (self.folder / "test_it.py").write_text(f"{PREAMBLE}def test_it():\n{body}{test.replace('KILL', kill)}")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "watch", "-c", "/dev/null", "--rootdir=.", "test_it.py"],
            cwd=self.folder,
            env=os.environ
            | {
                "PYTHONPATH": str(Path(watch.__file__).parent),
                "FASTVSOCK_TEST_UDS": self.guest.uds,
                "FASTVSOCK_TEST_BOOT": str(self.folder / "boot.sh"),
                "FASTVSOCK_TEST_CONSOLE": str(self.folder / "console.log"),
            },
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        return done.returncode, done.stdout

    @property
    def runs(self) -> int:
        return (self.folder / "runs").read_text().count("run")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose guest is up."""
    boot = tmp_path / "boot.sh"
    boot.write_text(BOOT.format(pids=str(tmp_path / "pids"), python=sys.executable))
    boot.chmod(0o755)
    machine = Machine(tmp_path)
    with started([str(boot), machine.guest.uds], stderr=None) as child:
        while (line := child.stdout.readline()) != b"guest ready\n":
            assert line
        yield machine
    machine.guest.end()


def test_a_test_whose_guest_died_runs_again_on_a_new_guest(machine: Machine) -> None:
    first = f"    if not Path({str(machine.folder / 'died')!r}).exists():\n"
    first += f"        Path({str(machine.folder / 'died')!r}).touch()\n        KILL\n        assert False\n"
    status, said = machine.pytest(first)
    assert status == 0, said
    assert (machine.runs, len(machine.boots)) == (2, 2)
    assert "1 passed" in said
    assert "test_it.py::test_it: failed, and the guest did not answer: run again on a new one" in said


def test_a_test_that_fails_with_its_guest_alive_runs_once(machine: Machine) -> None:
    status, said = machine.pytest("    assert False\n")
    assert status == 1
    assert (machine.runs, len(machine.boots)) == (1, 1)
    assert "guests that died" not in said


def test_a_test_that_kills_every_guest_fails(machine: Machine) -> None:
    status, said = machine.pytest("    KILL\n    assert False\n")
    assert status == 1
    assert (machine.runs, len(machine.boots)) == (1 + watch.NEW_GUESTS, 1 + watch.NEW_GUESTS)
    assert "1 failed" in said
    assert said.count("run again on a new one") == watch.NEW_GUESTS


def test_a_guest_that_stands_still_does_not_answer_and_is_replaced(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = machine.guest
    assert guest.answers()
    os.kill(machine.boots[0], signal.SIGSTOP)
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.5)
    assert not guest.answers()
    monkeypatch.setattr(watch, "ANSWER_SECONDS", HANG)
    guest.replace()
    try:
        assert guest.answers()
    finally:
        guest.end()
    assert len(machine.boots) == 2


def test_a_guest_that_accepts_and_says_nothing_does_not_answer(machine: Machine) -> None:
    with started([sys.executable, "-m", "fastvsock", "emulate", f"{machine.guest.uds}.2", "--exec=7=true"]) as child:
        assert b"listening" in child.stdout.readline()
        assert not watch.Guest(f"{machine.guest.uds}.2", "", machine.folder / "console.log").answers()
