"""The workflows on GitHub: linted, pinned, without more rights than they need, and without recipes of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support import HANG, ROOT
from wheels import common

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PIN = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
CI = 'sudo env "PATH=$PATH" .ci/run'
TARGETS = set(re.findall(r"(?m)^([a-z][a-z-]*):", (ROOT / "Makefile").read_text()))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> str:
    """The text of each workflow in turn."""
    return str(request.param.read_text())


def _program(name: str) -> str:
    """A linter of .github/lint.txt, beside the Python that runs the tests or on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed here (.github/lint.txt)")
    return found


def _lint(*words: str | Path) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_the_three() -> None:
    assert [path.name for path in WORKFLOWS] == ["release.yml", "test.yml", "wheels.yml"]


def test_actionlint_has_nothing_to_say() -> None:
    _lint(_program("actionlint"), "-no-color", *WORKFLOWS)


def test_zizmor_has_nothing_to_say() -> None:
    _lint(_program("zizmor"), "--offline", "--no-progress", "--quiet", "--persona=pedantic", GITHUB)


def test_every_action_is_pinned_by_its_commit_and_says_its_version(workflow: str) -> None:
    uses = re.findall(r"uses:\s*(.*)", workflow)
    assert uses
    assert [use for use in uses if not PIN.fullmatch(use.strip())] == []


def test_one_action_has_one_pin() -> None:
    uses = {use for path in WORKFLOWS for use in re.findall(r"uses:\s*(.*)", path.read_text())}
    assert len({use.partition("@")[0] for use in uses}) == len(uses)


def test_every_step_that_runs_something_runs_the_ci_or_a_make_target(workflow: str) -> None:
    # One line, one target: whoever wants to do by hand what a workflow does types the same.
    for line in re.findall(r"run:\s*(.*)", workflow):
        if line == CI:
            continue
        words = line.split()
        assert words[0] == "make", line
        assert words[1] in TARGETS, line
        nested = re.search(r'RUN="?([a-z-]+)', line)
        assert not nested or nested[1] in TARGETS, line


def test_rights_are_given_to_jobs_alone_and_writing_to_the_publishers_alone(workflow: str) -> None:
    assert re.search(r"(?m)^permissions: \{\}$", workflow)
    writing = re.findall(r"[\w-]+: write", workflow)
    provenance = ["id-token: write", "attestations: write"]
    publishing = [*provenance, "contents: write", *provenance]
    assert writing == (publishing if "pypi-publish@" in workflow else [])


def test_a_checkout_leaves_no_credentials(workflow: str) -> None:
    assert workflow.count("actions/checkout@") == workflow.count("persist-credentials: false")


def test_a_run_ends_and_does_not_meet_another(workflow: str) -> None:
    assert re.search(r"(?m)^concurrency:\n  group: .*github\.ref", workflow)
    assert workflow.count("runs-on:") == workflow.count("timeout-minutes:")


def test_every_supported_python_is_tested_on_both_machines_and_on_alpine() -> None:
    text = (GITHUB / "workflows" / "test.yml").read_text()
    assert 'python: ["3.11", "3.12", "3.13", "3.14"]' in text
    assert text.count("runner: [ubuntu-24.04, ubuntu-24.04-arm]") == 2
    assert f"- run: {CI}\n" in text
    assert "make alpine RUN=test" in text


@pytest.mark.parametrize(
    ("vm", "status", "made", "told"),
    [
        (0, 0, "build, then test-binary, then test-binary, then test, then test-vm", ""),
        (77, 0, "build, then test-binary, then test-binary, then test", "skipped: make test-vm"),
        (70, 70, "build, then test-binary, then test-binary, then test", ""),
    ],
    ids=["the VM can run", "this machine cannot", "the VM is broken"],
)
def test_ci_requires_every_tool_and_names_what_it_skips(
    vm: int, status: int, made: str, told: str, tmp_path: Path
) -> None:
    scripts = {
        "bin/make": 'echo "made $1, $FASTVSOCK_REQUIRE_ALL"',
        "bin/apt-get": "exit 0",
        "bin/uname": "echo x86_64",
        ".venv/bin/python": f"exit {vm}",
    }
    for name, text in scripts.items():
        script = tmp_path / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FASTVSOCK_REQUIRE_ALL": "0"}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=env, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == status
    assert re.findall("made (.*)", done.stdout) == [f"{target}, 1" for target in made.split(", then ")]
    assert told in done.stdout


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.name)
def test_a_form_for_issues_is_one_that_github_shows(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = [element for element in form["body"] if element["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"checkboxes", "dropdown", "input", "textarea"}
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_a_report_of_a_bug_brings_what_doctor_found() -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (doctor,) = (field for field in form["body"] if "fastvsock doctor --json" in field["attributes"].get("label", ""))
    assert doctor["validations"]["required"]


def test_the_changelog_has_a_section_for_this_version() -> None:
    version = common.version().partition(".dev")[0]
    sections = re.findall(r"(?m)^## (.*)", (GITHUB / "CHANGELOG.md").read_text())
    named = f"[Unreleased] - {version}" if not common.is_release() else f"[{version}] - "
    assert sections[0].startswith(named)
