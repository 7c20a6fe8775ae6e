"""`fastvsock runcvm check`: each finding in a bundle, well and not."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from fastvsock.diagnostics import machine
from fastvsock.runcvm import bundle as bundle_module
from fastvsock.runcvm.bundle import Ran
from support import HANG
from support.bundles import OTHER_MACHINE, exec_script, findings, make_bundle, of_another_machine, put, runcvm

LAUNCHER = "scripts/runcvm-vsock-connect"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A bundle with all in order."""
    bundle = make_bundle(tmp_path / "opt/runcvm", python=True)
    assert runcvm("install", bundle).returncode == 0
    return bundle


def test_a_bundle_that_was_installed_into_is_well(installed: Path) -> None:
    found = findings("--root", installed, code=0)
    states = {name: finding["state"] for name, finding in found.items() if name != "engine"}
    assert states.pop("bundle engine") in ("ok", "warning")  # the engine is optional
    names = {
        "bundle",
        "linker",
        "tar",
        "sh",
        "tail",
        "aliases",
        "exec",
        "launcher",
        "bundle python",
        "python",
        "port 22222",
        "uds",
    }
    assert {name: states[name] for name in names} == dict.fromkeys(names, "ok")
    assert "runs through lib/ld" in found["tar"]["text"]
    assert "{}.{}.{}".format(*sys.version_info) in found["bundle python"]["text"]


def test_a_bundle_as_shipped_has_the_failures_that_install_mends(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", python=True)
    found = findings("--root", bundle, code=1)
    failed = {name for name, finding in found.items() if finding["state"] == "failed"}
    assert failed == {"tar", "tail", "aliases", "exec", "launcher", "bundle engine"}
    assert all("fastvsock runcvm install" in found[name]["advice"] for name in failed)


def without(path: str) -> Callable[[Path], None]:
    """The deed of removing a file."""
    return lambda bundle: (bundle / path).unlink()


def written(path: str, text: str, mode: int = 0o755) -> Callable[[Path], None]:
    """The deed of putting another file in its place."""
    return lambda bundle: put(bundle / path, text, mode)


def linked(path: str, target: str) -> Callable[[Path], None]:
    """The deed of putting a link in its place."""

    def deed(bundle: Path) -> None:
        (bundle / path).unlink()
        (bundle / path).symlink_to(target)

    return deed


def crashing(path: str) -> Callable[[Path], None]:
    """The deed of putting a program there that crashes, and no linker to run it with."""

    def deed(bundle: Path) -> None:
        (bundle / "lib/ld").unlink()
        (bundle / path).unlink()
        put(bundle / path, "#!/bin/sh\nkill -11 $$\n", 0o755)

    return deed


def broken(launcher: str) -> str:
    """The launcher with an end before its program is started."""
    return launcher.replace("\nself=$0\n", "\nexit 3\n", 1)


DEEDS: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "no linker": (without("lib/ld"), "linker", "failed", "lib/ld is not there"),
    "no tar": (without("bin/tar"), "tar", "failed", "kubectl cp cannot work"),
    "a tar that does not run": (
        written("bin/busybox", "none"),
        "tar",
        "failed",
        "bin/tar does not run through lib/ld: ",
    ),
    "no sh": (without("bin/sh"), "sh", "failed", "kubectl cp --retries cannot work"),
    "no tail": (without("bin/tail"), "tail", "failed", "kubectl cp --retries cannot work"),
    "a tail that does not run": (
        linked("bin/tail", "/.runcvm/guest/bin/bash"),
        "tail",
        "failed",
        "bin/tail does not run through lib/ld: ",
    ),
    "aliases without sh and tail": (
        written("scripts/runcvm-ctr-defaults", "create_aliases() {\n  for cmd in busybox tar; do :; done\n}\n"),
        "aliases",
        "failed",
        "missing in the word list of create_aliases() in scripts/runcvm-ctr-defaults: sh, tail",
    ),
    "no aliases": (without("scripts/runcvm-ctr-defaults"), "aliases", "failed", "is not there"),
    "other aliases": (
        written("scripts/runcvm-ctr-defaults", "x=1\n"),
        "aliases",
        "warning",
        "is unknown: no definition",
    ),
    "the old exec": (written("scripts/runcvm-ctr-exec", exec_script("fork")), "exec", "failed", "a TCP port"),
    "another exec": (
        written("scripts/runcvm-ctr-exec", "#!/bin/bash\n"),
        "exec",
        "warning",
        "the shape of scripts/runcvm-ctr-exec is unknown",
    ),
    "no launcher": (without(LAUNCHER), "launcher", "failed", "is not there"),
    "a launcher that fails": (written(LAUNCHER, "#!/bin/sh\nexit 3\n"), "launcher", "failed", "its first lines differ"),
    "a launcher that breaks down": (
        lambda bundle: put(bundle / LAUNCHER, broken((bundle / LAUNCHER).read_text()), 0o755),
        "launcher",
        "failed",
        f"{LAUNCHER} does not run directly: ",
    ),
    "a launcher that may not run": (
        lambda bundle: (bundle / LAUNCHER).chmod(0o600),
        "launcher",
        "failed",
        "run directly: it does not start (Permission denied)",
    ),
    "no python": (without("usr/bin/python3"), "bundle python", "warning", "no python3 in the bundle"),
    "a python that is too old": (
        written("usr/bin/python3", "#!/bin/sh\necho 'is Python 3.10' >&2\nexit 1\n"),
        "bundle python",
        "warning",
        "usr/bin/python3",
    ),
    "a tar that breaks down": (crashing("bin/tar"), "tar", "failed", "without lib/ld: ended by signal 11"),
    "a tar that leads nowhere": (linked("bin/tar", "nowhere"), "tar", "failed", "no tar in the bundle"),
    "a tar that leads to itself": (linked("bin/tar", "tar"), "tar", "failed", "no tar in the bundle"),
    "a tar by a mount point": (linked("bin/tar", "/.runcvm/guest/bin/busybox"), "tar", "ok", "through lib/ld"),
    "a tar by the other": (linked("bin/tar", "/opt/runcvm/bin/busybox"), "tar", "ok", "through lib/ld"),
    "a tar that climbs out": (linked("bin/tar", "/opt/runcvm/../../bin/tar"), "tar", "failed", "leads out"),
    "a link that leads out": (
        lambda bundle: os.rename(bundle / "led out", bundle / "bin/tar"),
        "tar",
        "failed",
        "leads out of the bundle",
    ),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_wrong_in_a_bundle_is_found(installed: Path, deed: str) -> None:
    spoil, name, state, text = DEEDS[deed]
    (installed / "led out").symlink_to("/bin/tar")
    spoil(installed)
    found = findings("--root", installed)[name]
    assert found["state"] == state, found
    assert text in found["text"]


@pytest.mark.parametrize(
    ("printed", "state", "text"),
    [
        ("Python 3.14.0rc1+", "ok", "usr/bin/python3 is Python 3.14.0rc1+"),
        ("Python 3.11.9 (75b3de9d9035, Apr 21)\n[PyPy 7.3.17 with GCC 10.2.1]", "ok", "is Python 3.11.9"),
        ("", "failed", "does not print its version"),
        ("nonsense", "failed", "does not print its version"),
    ],
)
def test_the_version_of_the_bundles_python_is_read_from_whatever_it_prints(
    installed: Path, monkeypatch: pytest.MonkeyPatch, printed: str, state: str, text: str
) -> None:
    real = bundle_module.run

    def run(command: list[str], *arguments: Any) -> Ran:
        return Ran(printed, "", 0) if command[-1] == "-V" else real(command, *arguments)

    monkeypatch.setattr(bundle_module, "run", run)
    found = findings("--root", installed)["bundle python"]
    assert found["state"] == state
    assert text in found["text"]
    assert "10.2.1" not in found["text"]


def test_a_look_that_fails_in_a_way_that_nobody_thought_of_is_a_finding(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise IndexError("of nothing")

    monkeypatch.setattr(bundle_module.Bundle, "find", fail)
    monkeypatch.setattr(machine, "listening_inodes", fail)
    found = findings("--root", installed, code=1)
    for name in ("tar", "bundle python", "port 22222"):
        assert found[name]["state"] == "failed"
        assert "IndexError: of nothing" in found[name]["text"]
    assert found["linker"]["state"] == "ok"


def test_a_bundle_that_is_not_there_is_a_finding_among_the_others(tmp_path: Path) -> None:
    found = findings("--root", tmp_path, code=1)
    assert found["bundle"]["state"] == "failed"
    assert "not a RunCVM bundle" in found["bundle"]["text"]
    assert found["python"]["state"] == "ok"


def test_a_launcher_is_well_without_an_exec_script(installed: Path) -> None:
    (installed / "scripts/runcvm-ctr-exec").unlink()
    found = findings("--root", installed, code=1)
    assert (found["exec"]["state"], found["launcher"]["state"]) == ("failed", "ok")


def test_the_form_with_proxy_needs_its_own_launcher(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", python=True)
    assert runcvm("install", bundle, "--proxy").returncode == 0
    assert findings("--root", bundle, code=0)["launcher"]["text"].count("scripts/") == 2
    put(bundle / "scripts/fastvsock", "#!/bin/sh\nexit 3\n", 0o755)
    assert "scripts/fastvsock is not fastvsock's" in findings("--root", bundle, code=1)["launcher"]["text"]
    (bundle / "scripts/fastvsock").unlink()
    found = findings("--root", bundle, code=1)["launcher"]
    assert found["text"] == "scripts/fastvsock is not there, and scripts/runcvm-ctr-exec starts it"


@pytest.mark.parametrize("program", ["lib/ld", "bin/tar"])
def test_a_program_that_hangs_is_told_from_one_that_does_not_start_and_leaves_no_process(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(bundle_module, "SECONDS", 0.5)
    (installed / program).unlink()
    pids = tmp_path / "pids"
    put(installed / program, f"#!/bin/sh\nsleep 900 &\necho $! >> {pids}\nwait\n", 0o755)
    if program != "lib/ld":
        (installed / "lib/ld").unlink()
    found = findings("--root", installed, code=1)["tar"]
    assert "no answer within 0.5 s" in found["text"]
    assert "does not start" not in found["text"]
    # On a busy machine it may have been ended before it had a child.
    for pid in map(int, pids.read_text().split() if pids.exists() else ()):
        await_end(pid)


def await_end(pid: int) -> None:
    """Wait until no such process is there; a zombie that nobody has waited for has ended as well."""
    give_up = monotonic() + HANG
    while monotonic() < give_up:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        sleep(0.01)
    raise AssertionError(f"process {pid} stays")


def test_a_bundle_for_another_machine_is_no_failure_and_the_advice_is_to_look_there(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", python=True)
    of_another_machine(bundle)
    assert runcvm("install", bundle).returncode == 0
    found = findings("--root", bundle, code=0)
    for name in ("linker", "tar", "sh", "tail", "launcher", "bundle python", "bundle engine"):
        assert found[name]["state"] == "warning"
        assert f"built for {OTHER_MACHINE}" in found[name]["text"]
        assert "cannot be run here" in found[name]["text"]
        assert f"on a {OTHER_MACHINE} machine" in found[name]["advice"]
    assert found["exec"]["state"] == found["aliases"]["state"] == "ok"
    (bundle / "bin/tar").unlink()
    put(bundle / LAUNCHER, "#!/bin/sh\n", 0o755)
    found = findings("--root", bundle, code=1)
    assert found["tar"]["state"] == "failed"
    assert found["launcher"]["text"] == f"{LAUNCHER} is not fastvsock's: its first lines differ"


def test_an_engine_that_does_not_load_is_a_warning_that_says_why(installed: Path) -> None:
    for engine in installed.glob("lib/fastvsock/*/fastvsock/engines/_splice*"):
        engine.write_bytes(b"\x7fELF, but no more")
    found = findings("--root", installed, code=0)["bundle engine"]
    assert found["state"] == "warning"
    assert re.fullmatch(r"copy, which takes more CPU time: the splice engine is not installed \(.+\)", found["text"])
