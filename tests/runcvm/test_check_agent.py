"""`fastvsock runcvm check`: who starts the agent in the guest, who uses it, and whether it answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import fastvsock
from fastvsock.diagnostics import uds
from support import Listener
from support.bundles import OTHER, OTHER_MACHINE, SHELL_SCRIPTS, findings, put, runcvm
from support.channels import Guest, agent_on
from support.installing import install_now, small, stand_in

INIT = "scripts/docker/firecracker-init.sh"
DOCUMENT = (SHELL_SCRIPTS / "init/document.sh").read_text()
UNKNOWN = "socat VSOCK-LISTEN:22,fork EXEC:/bin/sh &\n"


@pytest.fixture
def with_init(bundle: Path) -> Path:
    """A bundle that starts socat in its guests, and has the static binary."""
    (bundle / INIT).parent.mkdir()
    put(bundle / INIT, DOCUMENT, 0o755)
    install_now(bundle, small())
    return bundle


@pytest.fixture
def originals(bundle: Path) -> dict[Path, bytes]:
    """The scripts of a bundle as RunCVM ships them, before any installation."""
    (bundle / INIT).parent.mkdir()
    put(bundle / INIT, DOCUMENT, 0o755)
    return {path: path.read_bytes() for path in (bundle / "scripts").rglob("*") if path.is_file()}


@pytest.fixture
def upgradable(bundle: Path, originals: dict[Path, bytes], tmp_path: Path) -> Path:
    """That bundle with a binary that runs."""
    assert runcvm("install", bundle, "--binary", stand_in(tmp_path / "binary")).returncode == 0
    return bundle


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Guest]:
    """A guest's agent."""
    with agent_on(tmp_path / "v.sock") as agent:
        yield agent


def test_the_channels_of_a_bundle_with_the_binary_are_well(with_init: Path) -> None:
    found = findings("--root", with_init)
    assert found["guest init"]["state"] == found["exec"]["state"] == "ok"
    assert found["guest init"]["text"].startswith(f"{INIT}: starts the agent in the guest")
    assert "uses a channel to the guest's agent" in found["exec"]["text"]


def test_a_bundle_with_a_binary_that_runs_is_well_and_asks_for_no_python(upgradable: Path) -> None:
    found = findings("--root", upgradable, code=0)
    names = ("tar", "aliases", "exec", "guest init", "launcher", "binary")
    assert [found[name]["state"] for name in names] == ["ok"] * len(names)
    assert not {"bundle python", "bundle engine"} & {*found}


def test_an_upgrade_of_runcvm_over_it_has_the_failures_that_install_mends_and_asks_for_no_python(
    upgradable: Path, originals: dict[Path, bytes]
) -> None:
    for path, data in originals.items():
        path.write_bytes(data)
    found = findings("--root", upgradable, code=1)
    failed = {name for name, finding in found.items() if finding["state"] == "failed"}
    assert failed == {"aliases", "exec", "guest init", "launcher"}
    assert all(found[name]["advice"] == "run: fastvsock runcvm install" for name in failed)
    assert found["binary"]["state"] == "ok"
    assert not {"bundle python", "bundle engine"} & {*found}


def test_a_binary_for_another_machine_is_named_and_the_launcher_is_said_to_be_ours_but_not_to_run(
    upgradable: Path,
) -> None:
    program = upgradable / "bin/fastvsock"
    program.write_bytes(of_machine(program.read_bytes()))
    found = findings("--root", upgradable, code=1)
    assert f"bin/fastvsock is for {OTHER_MACHINE}, the bundle for " in found["binary"]["text"]
    assert found["launcher"]["text"].startswith("scripts/runcvm-vsock-connect does not run directly: ")


def of_machine(program: bytes) -> bytes:
    """An ELF file that says to be for `OTHER_MACHINE`."""
    return program[:18] + OTHER.to_bytes(2, "little") + program[20:]


@pytest.mark.parametrize(
    ("text", "state", "why"),
    [
        (DOCUMENT, "failed", "starts no agent in the guest"),
        (UNKNOWN, "warning", "socat joins a vsock port to something else"),
        ("#!/bin/sh\n", "warning", "no script of the bundle starts socat"),
    ],
)
def test_a_bundle_whose_guests_start_no_agent_has_that_as_a_finding(
    with_init: Path, text: str, state: str, why: str
) -> None:
    put(with_init / INIT, text, 0o755)
    found = findings("--root", with_init)["guest init"]
    assert found["state"] == state
    assert why in found["text"]


def test_the_package_needs_no_agent(bundle: Path) -> None:
    assert runcvm("install", bundle).returncode == 0
    found = findings("--root", bundle)
    assert found["guest init"]["state"] == found["exec"]["state"] == "ok"
    assert "dbclient a transport of its own" in found["exec"]["text"]


def test_the_agent_of_a_guest_is_asked_for_its_version_and_timed(with_init: Path, agent: Guest) -> None:
    found = findings("--root", with_init, agent.uds)["agent"]
    assert found["state"] == "ok"
    assert found["text"].startswith(f"fastvsock agent {fastvsock.__version__} on ")
    assert " ms; this is fastvsock " in found["text"]


def test_an_agent_of_another_release_is_a_warning_with_the_way_to_the_bundles_own(
    with_init: Path, agent: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uds, "__version__", "99.0")
    found = findings("--root", with_init, agent.uds)["agent"]
    assert found["state"] == "warning"
    assert f"fastvsock agent {fastvsock.__version__} on " in found["text"]
    assert found["text"].endswith("; this is fastvsock 99.0")
    assert "start the VM again" in found["advice"]


def test_a_guest_without_an_agent_is_a_warning_since_exec_has_another_way(with_init: Path, listener: Listener) -> None:
    listener.close()
    found = findings("--root", with_init, listener.uds)["agent"]
    assert found["state"] == "warning"
    assert found["text"].startswith("no agent is reached, so exec goes through dbclient: ")
    assert "start the VM again" in found["advice"]


def test_a_port_that_is_given_is_the_one_that_is_tried(with_init: Path, agent: Guest) -> None:
    assert "agent" not in findings("--root", with_init, agent.uds, "22")
