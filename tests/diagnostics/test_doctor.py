"""`fastvsock doctor`: what the command prints, and its exit status."""

import json
import os
from pathlib import Path

import pytest

from fastvsock import __version__
from fastvsock.cli import doctor
from support import ECHO, NOTHING, Endpoint
from support.bundles import fastvsock, findings


def test_the_text_names_each_finding_and_what_to_do(tmp_path: Path) -> None:
    result = fastvsock("doctor", str(tmp_path / "none"))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert any(line.startswith("ok       python") for line in lines)
    at = next(index for index, line in enumerate(lines) if line.startswith("failed   uds"))
    assert "-> start the VMM" in lines[at + 1]


def test_the_json_holds_what_a_bug_report_needs(endpoint: Endpoint) -> None:
    result = fastvsock("doctor", "--json", endpoint.uds, str(ECHO))
    found = json.loads(result.stdout)
    assert [finding["check"] for finding in found] == [
        *("fastvsock", "python", "engine", "system", "pipes", "descriptors", "port 22222"),
        *("uds", "listener", "vmm", "handshake"),
    ]
    assert all(sorted(finding) == ["advice", "check", "state", "text"] for finding in found)
    assert found[0]["text"].startswith(f"fastvsock {__version__}, in ")


@pytest.mark.parametrize("arguments", [[""], ["", "22"]])
def test_an_empty_socket_path_is_wrong_usage(arguments: list[str]) -> None:
    result = fastvsock("doctor", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "UDS is empty" in result.stderr


def test_without_a_socket_it_reports_that_none_was_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "UDS", str(tmp_path / "none"))
    found = findings(code=0)["uds"]
    assert found["state"] == "ok"
    assert found["text"] == f"not checked: no UDS is given, and there is none at {tmp_path}/none"


def test_an_invalid_port_is_an_error_and_not_a_finding() -> None:
    result = fastvsock("doctor", "/nowhere", "70000000000")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "guest port" in result.stderr
    assert "70000000000" in result.stderr
    assert os.path.basename(result.args[0]) == "doctor"


def test_a_failure_names_no_option_that_doctor_does_not_have(endpoint: Endpoint) -> None:
    assert "--" not in findings(endpoint.uds, str(NOTHING), code=1)["handshake"]["text"]
