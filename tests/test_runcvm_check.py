"""`fastvsock runcvm check` and `fastvsock doctor`: each finding, well and not, and what the command makes of it."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runcvm.bundles import exec_script, fastvsock, make_bundle, put, runcvm

from fastvsock.runcvm import check
from support import ECHO, NOTHING, Endpoint, Listener, started

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
    names = {"linker", "tar", "aliases", "exec", "launcher", "bundle python", "python", "port 22222"}
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


DEEDS: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "no linker": (without("lib/ld"), "linker", "failed", "lib/ld is not there"),
    "no tar": (without("bin/tar"), "tar", "failed", "kubectl cp cannot work"),
    "a tar that does not run": (without("bin/busybox"), "tar", "failed", "bin/tar does not run through lib/ld"),
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
        "not executable",
    ),
    "no python": (without("usr/bin/python3"), "bundle python", "warning", "no python3 in the bundle"),
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


def test_a_port_that_is_none_is_an_error_and_no_finding() -> None:
    result = fastvsock("doctor", "/nowhere", "70000000000")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "is no guest port" in result.stderr
    assert os.path.basename(result.args[0]) == "doctor"
