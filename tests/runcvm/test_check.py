"""`fastvsock runcvm check` and `fastvsock doctor`: each finding, well and not, and what the command makes of it."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from fastvsock.commands import doctor
from fastvsock.runcvm import bundle as bundle_module
from fastvsock.runcvm import check
from fastvsock.runcvm.bundle import Ran
from support import ECHO, HANG, NOTHING, Endpoint, Listener, started
from support.bundles import OTHER_MACHINE, exec_script, fastvsock, make_bundle, of_another_machine, put, runcvm

LAUNCHER = "scripts/runcvm-vsock-connect"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A bundle with all in order."""
    bundle = make_bundle(tmp_path / "opt/runcvm", python=True)
    assert runcvm("install", bundle).returncode == 0
    return bundle


def findings(*arguments: str | Path, code: int | None = None) -> dict[str, dict[str, str]]:
    """The findings of `doctor` or, with `--root` among the arguments, `runcvm check`, by their names."""
    command = ["runcvm", "check"] if "--root" in arguments else ["doctor"]
    result = fastvsock(*command, "--json", *arguments)
    found = {finding["check"]: finding for finding in json.loads(result.stdout)}
    failed = any(finding["state"] == "failed" for finding in found.values())
    assert result.returncode == (1 if failed else 0) == (failed if code is None else code)
    assert all(finding["advice"] for finding in found.values() if finding["state"] != "ok")
    return found


def test_a_bundle_that_was_installed_into_is_well(installed: Path) -> None:
    found = findings("--root", installed, code=0)
    states = {name: finding["state"] for name, finding in found.items() if name != "engine"}
    assert states.pop("bundle engine") in ("ok", "warning")  # the engine is optional
    names = {"linker", "tar", "aliases", "exec", "launcher", "bundle python", "python", "port 22222", "uds"}
    assert states == dict.fromkeys(names, "ok")
    assert "runs through lib/ld" in found["tar"]["text"]
    assert "{}.{}.{}".format(*sys.version_info) in found["bundle python"]["text"]


def test_a_bundle_as_shipped_has_the_failures_that_install_mends(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", python=True)
    found = findings("--root", bundle, code=1)
    failed = {name for name, finding in found.items() if finding["state"] == "failed"}
    assert failed == {"tar", "aliases", "exec", "launcher", "bundle engine"}
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


DEEDS: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "no linker": (without("lib/ld"), "linker", "failed", "lib/ld is not there"),
    "no tar": (without("bin/tar"), "tar", "failed", "kubectl cp cannot work"),
    "a tar that does not run": (
        written("bin/busybox", "none"),
        "tar",
        "failed",
        "bin/tar does not run through lib/ld: ",
    ),
    "no aliases": (without("scripts/runcvm-ctr-defaults"), "aliases", "failed", "is not there"),
    "other aliases": (
        written("scripts/runcvm-ctr-defaults", "x=1\n"),
        "aliases",
        "warning",
        "not known: no definition",
    ),
    "the old exec": (written("scripts/runcvm-ctr-exec", exec_script("fork")), "exec", "failed", "starts socat"),
    "another exec": (written("scripts/runcvm-ctr-exec", "#!/bin/bash\n"), "exec", "warning", "shape that is not known"),
    "no launcher": (without(LAUNCHER), "launcher", "failed", "is not there"),
    "a launcher that fails": (written(LAUNCHER, "#!/bin/sh\nexit 3\n"), "launcher", "failed", "run directly"),
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
        ("", "failed", "tells no version"),
        ("nonsense", "failed", "tells no version"),
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
    monkeypatch.setattr(check, "_listening", fail)
    found = findings("--root", installed, code=1)
    for name in ("tar", "bundle python", "port 22222"):
        assert found[name]["state"] == "failed"
        assert "IndexError: of nothing" in found[name]["text"]
    assert found["linker"]["state"] == "ok"


def test_a_bundle_that_is_not_there_is_a_finding_among_the_others(tmp_path: Path) -> None:
    found = findings("--root", tmp_path, code=1)
    assert found["bundle"]["state"] == "failed"
    assert "no RunCVM bundle there" in found["bundle"]["text"]
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
    for name in ("linker", "tar", "launcher", "bundle python", "bundle engine"):
        assert found[name]["state"] == "warning"
        assert f"built for {OTHER_MACHINE}" in found[name]["text"]
        assert "cannot be run here" in found[name]["text"]
        assert f"a machine of {OTHER_MACHINE}" in found[name]["advice"]
    assert found["exec"]["state"] == found["aliases"]["state"] == "ok"
    (bundle / "bin/tar").unlink()
    put(bundle / LAUNCHER, "#!/bin/sh\n", 0o755)
    found = findings("--root", bundle, code=1)
    assert found["tar"]["state"] == "failed"
    assert found["launcher"]["text"] == f"{LAUNCHER} is not fastvsock's: it has another head"


def test_an_engine_that_does_not_load_is_a_warning_that_says_why(installed: Path) -> None:
    for engine in installed.glob("lib/fastvsock/*/fastvsock/engines/_splice*"):
        engine.write_bytes(b"\x7fELF, but no more")
    found = findings("--root", installed, code=0)["bundle engine"]
    assert found["state"] == "warning"
    assert "copy, which takes more CPU time: the splice engine is not there (" in found["text"]


def test_the_engine_and_why_it_is_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVSOCK_ENGINE", "copy")
    assert findings()["engine"]["text"] == "copy, since FASTVSOCK_ENGINE=copy"
    monkeypatch.setenv("FASTVSOCK_ENGINE", "quick")
    assert findings(code=1)["engine"]["state"] == "failed"
    monkeypatch.delenv("FASTVSOCK_ENGINE")
    monkeypatch.setitem(sys.modules, "fastvsock.engines._splice", None)
    monkeypatch.delattr("fastvsock.engines._splice", raising=False)
    found = findings(code=0)["engine"]
    assert found["state"] == "warning"
    assert found["text"].startswith("copy, which takes more CPU time: the splice engine is not there (")


def test_a_vmm_that_answers_is_well_and_says_how_fast(endpoint: Endpoint) -> None:
    found = findings(endpoint.uds, str(ECHO))
    assert [found[name]["state"] for name in ("uds", "connect")] == ["ok", "ok"]
    assert found["handshake"]["state"] in ("ok", "warning")
    assert found["handshake"]["text"].startswith(f"guest port {ECHO} answered in ")
    assert found["handshake"]["text"].endswith(" ms")


def test_without_a_port_no_handshake_is_made(endpoint: Endpoint) -> None:
    assert "handshake" not in findings(endpoint.uds, code=0)


def test_a_slow_answer_is_a_warning(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SLOW", 0.0)
    program = f"""
import socket
server = socket.socket(socket.AF_UNIX)
server.bind({listener.uds + ".slow"!r})
server.listen()
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    if connection.recv(99):
        connection.sendall(b"OK 1073741824\\n")
"""
    with started([sys.executable, "-c", program]) as child:
        child.stdout.readline()
        assert findings(listener.uds + ".slow", "22", code=0)["handshake"]["state"] == "warning"


def test_a_port_that_nobody_listens_on_fails_the_handshake_only(endpoint: Endpoint) -> None:
    found = findings(endpoint.uds, str(NOTHING), code=1)
    assert found["connect"]["state"] == "ok"
    assert found["handshake"]["state"] == "failed"
    assert f"guest port {NOTHING} refused" in found["handshake"]["text"]


def test_a_uds_that_cannot_serve_is_told_by_its_first_failure(tmp_path: Path, listener: Listener) -> None:
    listener.close()
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(tmp_path / "datagram"))
        for path, name, words in (
            (str(tmp_path / "none"), "uds", "No such file"),
            (str(tmp_path / "file"), "uds", "is no socket"),
            (listener.uds, "connect", "Connection refused"),
            (str(tmp_path / "datagram"), "connect", "Protocol wrong type"),
        ):
            found = findings(path, "22", code=1)
            assert found[name]["state"] == "failed"
            assert words in found[name]["text"]
            assert "handshake" not in found


def test_a_path_longer_than_an_address_is_no_failure(tmp_path: Path, endpoint: Endpoint) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    (deep / "v.sock").symlink_to(endpoint.uds)
    assert findings(str(deep / "v.sock"))["connect"]["state"] == "ok"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_whoever_holds_the_global_port_is_named(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    program = f"""
import socket, sys
server = socket.socket({int(family)})
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(({address!r}, {check.GLOBAL_PORT}))
server.listen()
print("listening", flush=True)
sys.stdin.read()
"""
    assert findings()["port 22222"]["state"] == "ok"
    with started([sys.executable, "-c", program]) as child:
        assert child.stdout.readline() == b"listening\n"
        found = findings()["port 22222"]
    assert found["state"] == "warning"
    assert f"(pid {child.pid})" in found["text"]


def test_the_text_names_each_finding_and_what_to_do(tmp_path: Path) -> None:
    result = fastvsock("doctor", str(tmp_path / "none"))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert any(line.startswith("ok       python") for line in lines)
    at = next(index for index, line in enumerate(lines) if line.startswith("failed   uds"))
    assert "-> start the VMM" in lines[at + 1]


def test_without_a_socket_it_says_that_none_was_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "UDS", str(tmp_path / "none"))
    found = findings(code=0)["uds"]
    assert found["state"] == "ok"
    assert found["text"] == f"not looked at: none is given, and there is none at {tmp_path}/none"


@pytest.mark.parametrize("arguments", [[""], ["", "22"]])
def test_an_empty_socket_path_is_wrong_usage(arguments: list[str]) -> None:
    result = fastvsock("doctor", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "UDS is empty" in result.stderr


def test_a_short_path_is_connected_to_without_proc(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_proc(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        return real("/dev/null" if flags & os.O_PATH else path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", without_proc)
    assert findings(endpoint.uds, code=0)["connect"]["state"] == "ok"


def test_no_answer_is_told_with_what_a_vmm_may_have(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TIMEOUT", 0.1)
    found = findings(listener.uds, "22", code=1)["handshake"]
    assert "no answer for guest port 22 within 0.1 s" in found["text"]
    assert "--timeout" not in found["text"]
    assert "--wait" not in findings(listener.uds, "22", code=1)["handshake"]["text"]
    assert found["advice"].startswith("see whether the VMM is paused, or out of file descriptors")


def test_a_refused_port_names_no_option_that_doctor_does_not_have(endpoint: Endpoint) -> None:
    assert "--" not in findings(endpoint.uds, str(NOTHING), code=1)["handshake"]["text"]


def test_the_global_port_is_that_of_this_network_namespace() -> None:
    assert findings()["port 22222"]["text"] == "nothing listens on 127.0.0.1:22222 in this network namespace"


def test_without_proc_nobody_can_tell_who_holds_the_global_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(check, "PROC_NET", str(tmp_path / "net"))
    assert findings(code=0)["port 22222"]["state"] == "warning"


def test_a_port_that_is_none_is_an_error_and_no_finding() -> None:
    result = fastvsock("doctor", "/nowhere", "70000000000")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "is no guest port" in result.stderr
    assert os.path.basename(result.args[0]) == "doctor"
