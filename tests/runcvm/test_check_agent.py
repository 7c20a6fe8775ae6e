"""`fastvsock runcvm check`: who starts the agent in the guest, who uses it, and whether it answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import fastvsock
from support import Listener
from support.bundles import SHELL_SCRIPTS, findings, put, runcvm
from support.channels import Guest, agent_on
from support.installing import install_now, small

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
def agent(tmp_path: Path) -> Iterator[Guest]:
    """A guest's agent."""
    with agent_on(tmp_path / "v.sock") as agent:
        yield agent


def test_the_channels_of_a_bundle_with_the_binary_are_well(with_init: Path) -> None:
    found = findings("--root", with_init)
    assert found["guest init"]["state"] == found["exec"]["state"] == "ok"
    assert found["guest init"]["text"].startswith(f"{INIT}: starts the agent in the guest")
    assert "uses a channel to the guest's agent" in found["exec"]["text"]


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


def test_a_guest_without_an_agent_is_a_warning_since_exec_has_another_way(with_init: Path, listener: Listener) -> None:
    listener.close()
    found = findings("--root", with_init, listener.uds)["agent"]
    assert found["state"] == "warning"
    assert found["text"].startswith("no agent is reached, so exec goes through dbclient: ")
    assert "start the VM again" in found["advice"]


def test_a_port_that_is_given_is_the_one_that_is_tried(with_init: Path, agent: Guest) -> None:
    assert "agent" not in findings("--root", with_init, agent.uds, "22")
