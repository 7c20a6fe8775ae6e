"""Fixtures: the engine, the endpoint, and a listener that the test itself answers for."""

import os
import shlex
import signal
import subprocess
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import (
    CHARGEN,
    CLOSE,
    COMMAND,
    DISCARD,
    ECHO,
    ENGINES,
    HANG,
    LATE_SOURCE,
    ROOT,
    SOURCE,
    SOURCE_SIZE,
    Endpoint,
    Listener,
    called,
    started,
)

# A child inherits what is ignored, and whoever starts the tests may ignore some: nohup SIGHUP, a shell without job
# control SIGINT and SIGQUIT in its background jobs. Python's own start ignores the two that stay.
for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

if TYPE_CHECKING:
    from support.services import FarEnd

AGENT = ROOT / "tests" / "support" / "guest_agent.c"

# Continuous integration accepts a skip whose reason begins so: the test is meant for another place, or needs what the
# kernel or the user of this machine may not do. Every other skip is for a program or a package, which can be installed.
ACCEPTED_SKIPS = ("by design: ", "this machine: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips for another reason than an accepted one fails where FASTVSOCK_REQUIRE_ALL=1."""
    report = yield
    fail_unaccepted_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips as a whole."""
    report = yield
    fail_unaccepted_skip(report)
    return report


def fail_unaccepted_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a report of a skip into one of a failure, unless its reason is accepted."""
    if os.environ.get("FASTVSOCK_REQUIRE_ALL") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    assert isinstance(report.longrepr, tuple)
    path, line, message = report.longrepr
    reason = message.removeprefix("Skipped: ")
    if not reason.startswith(ACCEPTED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: skipped ({reason}): FASTVSOCK_REQUIRE_ALL=1 asks for what this test needs"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's program, built."""
    program = tmp_path_factory.mktemp("guest") / "agent"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", program, AGENT], check=True, timeout=HANG)
    return program


@pytest.fixture(scope="session")
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A VMM's side with the guest's services behind it: real where FASTVSOCK_TEST_UDS is set, else the emulator.

    It is Firecracker's side, unless a test parametrises it (indirectly) with the name of another VMM.
    """
    vmm = getattr(request, "param", "firecracker")
    real = os.environ.get("FASTVSOCK_TEST_UDS")
    if real:
        if vmm != "firecracker":
            pytest.skip("by design: the VMM of tests/vm is Firecracker")
        yield Endpoint(real, real=True)
        return
    uds = str(tmp_path_factory.mktemp("vmm") / "v.sock")
    command = [*emulator(uds, request.getfixturevalue("agent")), f"--vmm={vmm}"]
    with started(command, stdin=subprocess.DEVNULL, stderr=None) as child:
        assert b"listening" in child.stdout.readline()
        yield Endpoint(uds, real=False)


@pytest.fixture
def booting(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[str]]:
    """A UDS that is not there yet, and the command that makes a VMM and its guest start behind it."""
    uds = str(tmp_path / "booting.sock")
    boot = os.environ.get("FASTVSOCK_TEST_BOOT")
    return uds, [boot, uds] if boot else emulator(uds, request.getfixturevalue("agent"))


def emulator(uds: str, agent: Path) -> list[str]:
    """The command line of the emulator with all the guest's services."""
    services = {
        ECHO: "echo",
        DISCARD: "discard",
        CHARGEN: "chargen",
        COMMAND: "command",
        LATE_SOURCE: f"sleep 1 source {SOURCE_SIZE}",
        CLOSE: "close",
        SOURCE: f"source {SOURCE_SIZE}",
    }
    options = [f"--exec={port}={shlex.quote(str(agent))} {service}" for port, service in services.items()]
    return [*called("fastvsock"), "emulate", uds, *options]


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    """A Unix socket whose far side is the test."""
    listener = Listener(tmp_path / "v.sock")
    yield listener
    listener.close()


@pytest.fixture
def far_end(tmp_path: Path) -> Iterator["FarEnd"]:
    """A guest that echoes on every port but 0."""
    from support.services import FarEnd  # asyncio takes seconds to import inside the harness of tests/vm

    far_end = FarEnd(tmp_path / "far.sock")
    yield far_end
    far_end.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Where the other side runs while the test blocks."""
    with ThreadPoolExecutor() as pool:
        yield pool
