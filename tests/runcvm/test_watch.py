"""`fastvsock runcvm install --watch`: what RunCVM's own upgrade replaces is edited again."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

from support import HANG, Child, called, started
from support.bundles import OLD_TRANSPORT, SHELL_SCRIPTS, exec_script, make_bundle, put, runcvm, snapshot
from support.installing import LAUNCHER

EXEC = "scripts/runcvm-ctr-exec"


@contextmanager
def watching(bundle: Path, errors: Path, *arguments: str) -> Iterator[Child]:
    """The command as a process, which writes its stderr to the file `errors`."""
    command = [*called("fastvsock"), "runcvm", "install", "--watch", "0.05", "--root", str(bundle)]
    with errors.open("wb") as stderr, started([*command, *arguments], stderr=stderr, stdout=stderr) as child:
        yield child


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until it holds."""
    give_up = monotonic() + HANG
    while not what():
        assert monotonic() < give_up, "it does not come"
        sleep(0.02)


def is_edited(bundle: Path) -> bool:
    """Whether the scripts are as an install leaves them."""
    try:
        return "-J '&3'" in (bundle / EXEC).read_text() and "of fastvsock" in (bundle / LAUNCHER).read_text()
    except FileNotFoundError:
        return False


def test_an_upgrade_of_runcvm_is_edited_again_and_becomes_the_original(bundle: Path, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with watching(bundle, errors) as child:
        newer = exec_script("continued")
        for number in range(3):
            wait_for(lambda: errors.read_text().count("nothing to do") > number)  # noqa: B023
            put(bundle / "new", f"{newer}# {number}\n", 0o755)
            (bundle / "new").rename(bundle / EXEC)
            put(bundle / LAUNCHER, OLD_TRANSPORT, 0o755)
            wait_for(lambda: is_edited(bundle) and f"# {number}" in (bundle / EXEC).read_text())  # noqa: B023
        (bundle / "bin/tar").unlink()
        wait_for(lambda: os.path.lexists(bundle / "bin/tar"))
        child.send_signal(signal.SIGTERM)
        assert child.wait(HANG) == 0
    assert runcvm("uninstall", bundle).returncode == 0
    assert (bundle / EXEC).read_text() == newer + "# 2\n"


def test_a_new_script_that_starts_socat_in_the_guest_is_edited_too(bundle: Path, binary: Path, tmp_path: Path) -> None:
    errors, init = tmp_path / "errors", bundle / "scripts/docker/init.sh"
    init.parent.mkdir()
    with watching(bundle, errors, "--binary", str(binary)):
        wait_for(lambda: "nothing to do" in errors.read_text())
        put(init, (SHELL_SCRIPTS / "init/document.sh").read_text(), 0o755)
        wait_for(lambda: "fastvsock agent --forward" in init.read_text())


def test_a_bundle_that_is_gone_for_a_while_is_installed_into_when_it_is_back(bundle: Path, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with watching(bundle, errors) as child:
        wait_for(lambda: is_edited(bundle))
        bundle.rename(tmp_path / "away")
        wait_for(lambda: "not a RunCVM bundle" in errors.read_text())
        sleep(0.3)
        assert errors.read_text().count("not a RunCVM bundle") == 1, "the same failure is logged again and again"
        make_bundle(tmp_path / "fresh")
        (tmp_path / "fresh").rename(bundle)
        wait_for(lambda: is_edited(bundle))
        child.send_signal(signal.SIGINT)
        assert child.wait(HANG) == 0
    assert "Traceback" not in errors.read_text()


def test_a_look_at_a_bundle_where_nothing_changed_runs_no_program(bundle: Path, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    assert strace, "strace is needed for this test"
    errors, trace = tmp_path / "errors", tmp_path / "trace"
    assert runcvm("install", bundle).returncode == 0
    with watching(bundle, errors) as child:
        wait_for(lambda: "nothing to do" in errors.read_text())
        sleep(0.2)
        with started([strace, "-f", "-e", "trace=execve,rename,clone,vfork", "-o", str(trace), "-p", str(child.pid)]):
            sleep(1)
        assert trace.exists()
        assert not [line for line in trace.read_text().splitlines() if "(" in line]


@pytest.mark.parametrize("arguments", [["--watch", "0"], ["--watch", "x"], ["--watch", "5", "--dry-run"]])
def test_a_watch_that_cannot_be_meant_is_wrong_usage(bundle: Path, arguments: list[str]) -> None:
    before = snapshot(bundle)
    command = [*called("fastvsock"), "runcvm", "install", "--root", str(bundle), *arguments]
    with started(command) as child:
        assert child.wait(HANG) == 2
    assert snapshot(bundle) == before
