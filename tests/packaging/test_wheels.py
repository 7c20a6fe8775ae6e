"""The wheels: built the same every time, shipped as the source is, and not without having been validated."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support import HANG
from support.packages import SCRIPTS
from support.ssh import missing_for_guest
from wheels import build, common, report, validate, verdict
from wheels.common import HERE, ROOT, Failed, sha256, version
from wheels.static import package
from wheels.static import validate as static_validate
from wheels.static.build import MACHINES
from wheels.verdict import QUICK, reasons

RATIOS = {way: {"ratio": 0.3, "least": 0.2, "most": 0.4, "splice": 0.1, "copy": 0.3} for way in ("up", "down")}
WAITED = {"start": {"ratio": 1.3}, "exec": {"ratio": 0.5}}
PLACE = "CPython 3.11.2, musl, native"
CONNECT = f"fastvsock-{version()}.data/scripts/runcvm-vsock-connect"


@pytest.fixture
def released() -> dict[str, str]:
    """The names of the wheels in wheels/ with their SHA-256, where this source is a release's; else the test skips."""
    if not common.is_release():
        pytest.skip(f"by design: {version()} is a development version, and wheels/ holds the last release")
    return common.shipped()


@pytest.fixture
def outcome() -> dict[str, Any]:
    """What a run says of a wheel that is good."""
    ran = {"place": PLACE, "emulated": False, "core": "14 checks", "pytest": "9 passed"}
    return ran | {"ratios": dict(RATIOS), "waits": dict(WAITED)}


@pytest.fixture(scope="session")
def target() -> build.Target:
    """One target: what RunCVM installs on arm64."""
    return next(target for target in build.TARGETS if target.platform == "musllinux_1_2_aarch64")


def test_four_wheels_of_one_version_are_shipped_as_their_sums_say() -> None:
    shipped, record = common.shipped(), json.loads((HERE / "BUILD.json").read_text())
    expected = {f"fastvsock-{record['version']}-cp311-abi3-{target.platform}.whl" for target in build.TARGETS}
    assert set(shipped) == {path.name for path in HERE.glob("*.whl")}
    assert {name: sha256(HERE / name) for name in shipped} == shipped
    wheels = {name: digest for name, digest in shipped.items() if name.startswith("fastvsock-")}
    assert set(wheels) == expected
    assert wheels == record["wheels"]


def test_the_wheels_of_a_release_are_of_its_source(released: dict[str, str]) -> None:
    static = {package.wheel_name(machine): machine for machine in MACHINES}
    for name in {*released, *static}:
        if name in static:
            static_validate.contents(HERE / name, static[name])
        else:
            validate.contents(HERE / name)
    record = json.loads((HERE / "BUILD.json").read_text())
    assert record["version"] == version(), "the wheels are of another version: make wheels"
    assert record["source"] == build.digest(), "the source has changed since the wheels were built: make wheels"


def test_the_wheels_of_a_release_were_validated_in_full(released: dict[str, str]) -> None:
    assert report.lacking(released) == []


@pytest.fixture
def record() -> dict[str, Any]:
    """A record of two wheels that were validated in full."""
    recorded: dict[str, Any] = json.loads((HERE / "VALIDATION.json").read_text())
    wheels = [wheel | {"name": name, "sha256": name} for wheel, name in zip(recorded["wheels"], "ab", strict=False)]
    return recorded | {"quick": False, "wheels": wheels}


def lacking(folder: Path, record: dict[str, Any], markdown: str | None = None, b: str = "b") -> list[str]:
    """What `record` lacks for the wheels a and b, whose SHA-256 are "a" and `b`."""
    (folder / "VALIDATION.json").write_text(json.dumps(record))
    (folder / "VALIDATION.md").write_text(markdown or report.markdown(record))
    return report.lacking({"a": "a", "b": b}, folder)


def test_a_record_of_a_full_validation_lacks_nothing(record: dict[str, Any], tmp_path: Path) -> None:
    assert lacking(tmp_path, record) == []


def test_a_record_lacks_what_was_not_done(record: dict[str, Any], tmp_path: Path) -> None:
    assert lacking(tmp_path, record | {"quick": True}) == ["it was a quick run"]
    assert lacking(tmp_path, record, b="other") == ["it is of other wheels"]
    assert lacking(tmp_path, record, markdown="by hand") == ["VALIDATION.md is not made from it"]


@pytest.mark.parametrize(
    ("change", "flaw"), [({"reasons": ["core"]}, "a wheel was rejected"), ({"runs": []}, "a wheel ran nowhere")]
)
def test_a_record_lacks_a_wheel_that_failed(
    record: dict[str, Any], change: dict[str, Any], flaw: str, tmp_path: Path
) -> None:
    record["wheels"][1] |= change
    assert lacking(tmp_path, record) == [flaw]


@pytest.mark.timeout(600)  # the first time, the compiler is fetched
def test_building_twice_gives_the_same_wheel(target: build.Target, tmp_path: Path) -> None:
    try:
        build.host_interpreter()
    except Failed as error:
        pytest.skip(f"by design: {error}")
    wheels = []
    for name in ("first", "another folder"):
        (tmp_path / name).mkdir()
        wheels += build.build([target], tmp_path / f"{name}-made", work=tmp_path / name)
    first, second = wheels
    assert first.read_bytes() == second.read_bytes()
    validate.contents(first)
    with zipfile.ZipFile(first) as archive:
        assert len({info.date_time for info in archive.infolist()}) == 1
    record = json.loads((first.parent / "BUILD.json").read_text())
    of_this_source = json.loads((HERE / "BUILD.json").read_text()) if (HERE / "BUILD.json").exists() else {}
    if record["source"] == of_this_source.get("source") and record["host"] == of_this_source["host"]:
        assert sha256(first) == of_this_source["wheels"][first.name], "what is shipped does not come out any more"


@pytest.mark.parametrize(
    ("number", "tag", "told"),
    [
        ("0.2.0.dev0", "v0.2.0.dev0", "is a development version"),
        ("0.2.0", "v0.2.1", "v0.2.1 is not the tag of version 0.2.0"),
    ],
)
def test_only_a_release_is_published_and_by_its_own_tag(
    number: str, tag: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "version", lambda: number)
    monkeypatch.setattr(common, "version", lambda: number)
    assert build.main(["--check", "--tag", tag]) == 1
    assert told in capsys.readouterr().err


def test_what_is_built_or_generated_is_no_source() -> None:
    suffixes = {path.suffix for path in build.sources()}
    assert not suffixes & {".so", ".c", ".pyc"}
    assert {".py", ".pyx", ".pyi", ".typed"} <= suffixes


def test_every_pin_has_hashes_and_is_what_was_asked_for() -> None:
    for asked in (*HERE.glob("*.in"), ROOT / ".github" / "lint.in"):
        pinned = asked.with_suffix(".txt").read_text()
        wanted = [line.split()[0] for line in asked.read_text().splitlines() if not line.startswith("#")]
        assert set(wanted) <= set(pinned.split()), f"{asked.name} has changed: make wheels-lock"
        pins = re.split(r"(?m)^(?=[a-z0-9])", pinned)[1:]
        assert [pin for pin in pins if not re.match(r"[\w.-]+==[\w.]+ .*\n    --hash=sha256:", pin)] == []


def test_a_wheel_that_is_good_is_accepted(outcome: dict[str, Any]) -> None:
    assert reasons({"auditwheel": "true"}, [outcome]) == []


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_splice_engine_that_does_not_clearly_beat_copy_is_a_reason(outcome: dict[str, Any], way: str) -> None:
    outcome["ratios"][way] = outcome["ratios"][way] | {"ratio": 0.81}
    assert reasons({}, [outcome]) == [f"{PLACE}: {way}, splice takes 0.81 of copy's CPU time"]


@pytest.mark.parametrize(
    ("name", "told"), [("start", "program takes 2.01 of interpreter's"), ("exec", "exec takes 2.01 of dbclient's")]
)
def test_a_user_who_waits_too_long_is_a_reason(outcome: dict[str, Any], name: str, told: str) -> None:
    outcome["waits"][name] = {"ratio": 2.01}
    assert reasons({}, [outcome]) == [f"{PLACE}: {name}, {told} time"]


def test_what_a_user_waits_for_is_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "environment", lambda name, python: sys.executable)
    words = {name: [str(SCRIPTS / name)] for name in package.COMMANDS} | {"interpreter": [sys.executable]}
    found = verdict.waits(words, replace(QUICK, waits=1))
    assert set(found) == ({"start"} if missing_for_guest() else {"start", "exec"})
    assert found["start"]["ratio"] == pytest.approx(found["start"]["program"] / found["start"]["interpreter"], abs=0.01)
    with pytest.raises(Failed, match="false wrote b''"):
        verdict.waits(words | {"interpreter": ["false"]}, QUICK)


@pytest.mark.parametrize("step", ["core", "pytest"])
def test_a_check_that_fails_is_a_reason(outcome: dict[str, Any], step: str) -> None:
    outcome[step] = "FAILED: echo, splice"
    assert reasons({}, [outcome]) == [f"{PLACE}: {step}: FAILED: echo, splice"]


def test_a_measure_that_could_not_be_made_is_a_reason(outcome: dict[str, Any]) -> None:
    del outcome["ratios"]
    outcome["failure"] = "FAILED: the relay did 'splice+copy', and not 'splice'"
    assert len(reasons({}, [outcome])) == 1


def test_an_audit_that_fails_or_a_wheel_that_ran_nowhere_is_a_reason() -> None:
    assert len(reasons({"abi3audit": "FAILED: PyObject_Foo"}, [])) == 2


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """The package as a wheel without the splice engine would install it."""
    shutil.copytree(
        ROOT / "src" / "fastvsock", tmp_path / "fastvsock", ignore=shutil.ignore_patterns("_splice.*", "__pycache__")
    )
    return tmp_path


def test_the_core_check_does_not_pass_without_the_splice_engine(unpacked: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(unpacked)}
    words = [sys.executable, "-S", str(HERE / "core_check.py")]
    done = subprocess.run(words, env=env, capture_output=True, timeout=HANG, check=False)
    facts = json.loads(done.stdout)
    assert done.returncode == 1
    assert facts["package"] == str(unpacked / "fastvsock")
    assert "the splice engine is not installed" in facts["failures"]["splice is what auto chooses"]
    assert {"echo, splice", "source, splice", "the command, splice"} <= set(facts["failures"])
    assert not [name for name in facts["failures"] if name.endswith(", copy")]


def _wheel(folder: Path, changes: dict[str, bytes | None]) -> Path:
    """A wheel as it should be, but for `changes`: names with their content, or None for a file that is left out."""
    files: dict[str, bytes] = {
        path.relative_to("src").as_posix(): (ROOT / path).read_bytes()
        for path in build.sources()
        if path.parts[:2] == ("src", "fastvsock") and path.suffix != ".pyx"
    }
    files[CONNECT] = (ROOT / "src" / "scripts" / "runcvm-vsock-connect").read_bytes()
    info = f"fastvsock-{version()}.dist-info"
    files[f"{info}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{validate.CONSOLE_SCRIPT}\n".encode()
    files |= dict.fromkeys(validate.EXTENSIONS, b"\x7fELF")
    path = folder / f"fastvsock-{version()}-cp311-abi3-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | changes).items():
            if content is not None:
                archive.writestr(name, content)
    return path


def _flaws() -> Iterator[tuple[str, bytes | None, str]]:
    yield "fastvsock/engines/_splice.pyx", b"", "has other files"
    yield "fastvsock/engines/_splice.c", b"", "has other files"
    yield "fastvsock/engines/_splice.abi3.so", None, "has other files"
    yield "fastvsock/py.typed", None, "has other files"
    yield "fastvsock/errors.py", b"# older", "differs from the source: fastvsock/errors.py"
    yield "fastvsock/engines/_splice.abi3.so", bytes(validate.LARGEST + 1), "without -O3"
    yield f"fastvsock-{version()}.dist-info/entry_points.txt", b"", "other commands"
    wrapped = f"[console_scripts]\n{validate.CONSOLE_SCRIPT}\nruncvm-vsock-connect = fastvsock.entry:main\n"
    yield f"fastvsock-{version()}.dist-info/entry_points.txt", wrapped.encode(), "other commands"
    yield CONNECT, None, "has other files"
    yield CONNECT, b"#!/usr/bin/python3", "differs from the source"
    yield f"fastvsock-{version()}.dist-info/licenses/LICENSE", b"", "another LICENSE"


@pytest.mark.parametrize(("name", "content", "told"), list(_flaws()))
def test_a_wheel_with_other_contents_is_found_out(name: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    validate.contents(_wheel(tmp_path, {}))
    with pytest.raises(Failed, match=told):
        validate.contents(_wheel(tmp_path, {name: content}))
