"""What is put into a bundle: the bundle's own Python, an engine that fits it, and a wheel that is one."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from fastvsock.runcvm import bundle as bundle_module
from fastvsock.runcvm import payload
from support.bundles import OTHER_MACHINE, of_another_machine, put, snapshot
from support.installing import LAUNCHER, installed, make_wheel


def elf(machine: int, libc: bytes) -> bytes:
    """What stands for a shared object: its header's machine, and a name of the C library that it needs."""
    return b"\x7fELF\x02\x01" + bytes(12) + machine.to_bytes(2, "little") + bytes(44) + b"\0" + libc + b"\0"


def test_a_bundle_for_another_machine_keeps_its_own_python(whole: Path) -> None:
    of_another_machine(whole)
    said = installed(whole).stderr
    assert '"$root/usr/bin/python3"' in (whole / LAUNCHER).read_text()
    assert f"built for {OTHER_MACHINE}" in said
    assert "without python3" not in said
    assert "nothing to do" in installed(whole).stderr


def test_a_python_that_leads_out_of_a_bundle_for_another_machine_is_none(whole: Path) -> None:
    of_another_machine(whole)
    (whole / "usr/bin/python3").unlink()
    (whole / "usr/bin/python3").symlink_to("/usr/bin/python3")
    assert "usr/bin/python3 leads out of the bundle" in installed(whole).stderr
    assert '"$root/usr/bin/python3"' not in (whole / LAUNCHER).read_text()


def test_a_python_that_gives_no_answer_is_reported_as_undone(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "SECONDS", 0.2)
    (whole / "usr/bin/python3").unlink()
    (whole / "lib/ld").unlink()
    put(whole / "usr/bin/python3", "#!/bin/sh\nexec sleep 900\n", 0o755)
    assert "usr/bin/python3: no answer within 0.2 s" in installed(whole, code=1).stderr


def test_an_engine_for_another_libc_or_machine_is_left_out_and_reported(bundle: Path, tmp_path: Path) -> None:
    machine = int.from_bytes((bundle / "lib/ld").read_bytes()[18:20], "little")
    for number, libc, words in (
        (machine, b"libc.musl-x86_64.so.1", ("is for", "musl, the bundle is", "glibc")),
        (183 if machine == 62 else 62, b"libc.so.6", ("is for", "glibc, the bundle is", "glibc")),
        (machine, b"libc.so.6", ()),
    ):
        wheel = make_wheel(tmp_path / f"{number}{len(libc)}.whl", _splice=elf(number, libc))
        said = installed(bundle, "--wheel", wheel).stderr
        assert all(word in said for word in words)
        assert ("is left out" in said) == bool(words)
        current = json.loads((bundle / ".fastvsock/manifest.json").read_text())["site"]
        assert (bundle / current / "fastvsock/engines/_splice.abi3.so").exists() == (not words)


def test_a_musl_bundle_is_known_by_its_dynamic_linker(bundle: Path) -> None:
    (bundle / "lib/ld").unlink()
    os.rename(next((bundle / "lib").glob("ld-linux*")), bundle / "lib/ld-musl-x86_64.so.1")
    (bundle / "lib/ld").symlink_to("./ld-musl-x86_64.so.1")
    package = payload.itself()
    assert isinstance(package, payload.Package)
    if package.engine():
        assert "glibc, the bundle is x86_64 musl: it is left out" in installed(bundle).stderr


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_file_that_is_no_wheel_of_fastvsock_is_refused(bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "other.whl"
    if content is None:
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr("fastvsock/entry.py", "")
            wheel.writestr("fastvsock/../../../escaped.py", "")
    else:
        file.write_bytes(content)
    before = snapshot(bundle)
    result = installed(bundle, "--wheel", file, code=1)
    assert str(file) in result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(bundle) == before


def spoiled_wheel(path: Path, how: str) -> Path:
    """A wheel of fastvsock that has something wrong with it."""
    make_wheel(path)
    texts: dict[str, dict[str, str | bytes]] = {
        "no __init__.py": {"fastvsock/entry.py": "#"},
        "no version": {"fastvsock/entry.py": "#", "fastvsock/__init__.py": "__version__ = None"},
        "a version that is a path": {"fastvsock/entry.py": "#", "fastvsock/__init__.py": '__version__ = "../.."'},
        "a module that is no text": {"fastvsock/entry.py": "#", "fastvsock/__init__.py": b"\xff__version__"},
    }
    if how in texts:
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in texts[how].items():
                wheel.writestr(name, text)
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("fastvsock/entry.py", os.urandom(99).hex())
        info = wheel.infolist()[0]
    data = bytearray(path.read_bytes())
    at = info.header_offset + 30 + len(info.filename)
    if how == "a damaged member":
        data[at : at + 20] = b"\xff" * 20
    else:  # of another compression: twice, in the member's header and in the directory
        data[8:10] = data[data.rindex(b"PK\x01\x02") + 10 :][:2] = (93).to_bytes(2, "little")
        data[data.rindex(b"PK\x01\x02") + 10] = 93
    path.write_bytes(data)
    return path


SPOILED = (
    "no __init__.py",
    "no version",
    "a version that is a path",
    "a module that is no text",
    "a damaged member",
    "an unknown compression",
)


@pytest.mark.parametrize("how", SPOILED)
def test_a_wheel_that_is_damaged_or_odd_is_refused_in_a_sentence(bundle: Path, tmp_path: Path, how: str) -> None:
    wheel = spoiled_wheel(tmp_path / "odd.whl", how)
    before = snapshot(bundle)
    said = installed(bundle, "--wheel", wheel, code=1).stderr
    assert said.startswith(f"fastvsock: {wheel}: ")
    assert said.count("\n") == 1
    assert snapshot(bundle) == before
