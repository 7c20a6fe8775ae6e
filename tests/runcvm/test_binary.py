"""A bundle that gets the static binary: neither it nor a container or guest that uses it needs a Python."""

import os
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

import fastvsock
from support import HANG, SOURCE, SOURCE_SIZE, Endpoint, pattern
from support import started as start
from support.bundles import ARGUMENTS, RECORD, SHAPES, called, exec_script, fallback, make_bundle, put, runcvm, snapshot
from support.installing import LAUNCHER, installed, launched

PROGRAM, NAMED = "bin/fastvsock", "bin/runcvm-vsock-connect"
VERSION = f"runcvm-vsock-connect {fastvsock.__version__}\n"


def started(*words: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in that environment alone."""
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=HANG, check=False)


def test_the_binary_installs_itself_where_there_is_no_python(
    bundle: Path, binary: Path, no_python: dict[str, str]
) -> None:
    before = snapshot(bundle)
    done = started(binary, "runcvm", "install", "--root", bundle, env=no_python)
    assert done.returncode == 0, done.stderr
    assert "python" not in done.stderr
    data = binary.read_bytes()
    assert (bundle / PROGRAM).read_bytes() == data
    assert (bundle / PROGRAM).stat().st_mode & 0o7777 == 0o755
    assert os.readlink(bundle / NAMED) == "fastvsock"
    assert not (bundle / "lib/fastvsock").exists()
    lines = [line for line in done.stdout.splitlines() if PROGRAM in line]
    assert lines[0] == f"+{PROGRAM} ({len(data)} bytes, SHA-256 {sha256(data).hexdigest()})"
    assert f"+{NAMED} -> fastvsock" in done.stdout.splitlines()
    assert "\0" not in done.stdout
    assert "nothing to do" in started(binary, "runcvm", "install", "--root", bundle, env=no_python).stderr
    assert started(binary, "runcvm", "uninstall", "--root", bundle, env=no_python).returncode == 0
    assert snapshot(bundle) == before


@pytest.mark.parametrize("how", [[], ["sh"], ["bash"], ["busybox", "sh"]])
def test_the_launcher_needs_no_python_and_becomes_the_binary(
    bundle: Path, binary: Path, no_python: dict[str, str], endpoint: Endpoint, how: list[str]
) -> None:
    installed(bundle, "--binary", binary)
    link = bundle.parent / "link"
    link.symlink_to(bundle / LAUNCHER)
    for path in (bundle / LAUNCHER, link):
        done = started(*(f"{no_python['PATH']}/{word}" for word in how[:1]), *how[1:], path, "--version", env=no_python)
        assert (done.returncode, done.stdout) == (0, VERSION), done.stderr
    command = [*how, str(bundle / LAUNCHER), "--linger", endpoint.linger, endpoint.uds, "7"]
    data = os.urandom(endpoint.size(1 << 20))
    moved = subprocess.run(command, input=data, env=no_python, capture_output=True, timeout=HANG, check=False)
    assert (moved.returncode, moved.stdout) == (0, data), moved.stderr


def test_the_launcher_starts_the_binary_alone_by_the_name_that_starts_from_the_image(
    bundle: Path, binary: Path, tmp_path: Path
) -> None:
    installed(bundle, "--binary", binary)
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-e", "trace=execve", "-s", "999", "-o", str(trace)]
    assert launched(bundle, "--version", before=strace) == VERSION
    calls = [line.partition(" ")[2].strip() for line in trace.read_text().splitlines() if "execve(" in line]
    assert len(calls) == 2
    assert f'["{bundle}/scripts/../{NAMED}", "--version"]' in calls[1]


def test_python3_path_still_starts_it_and_passes_arguments_and_streams_on(
    bundle: Path, binary: Path, endpoint: Endpoint
) -> None:
    installed(bundle, "--binary", binary)
    assert launched(bundle, "--version", before=["python3"]) == VERSION
    command = ["python3", str(bundle / LAUNCHER), endpoint.uds, str(SOURCE)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (0, pattern(SOURCE_SIZE)), done.stderr


@pytest.mark.parametrize("how", [[], ["sh"], ["bash"], ["python3"]])
def test_the_umbrellas_launcher_becomes_the_binary_too(bundle: Path, binary: Path, how: list[str]) -> None:
    installed(bundle, "--binary", binary, "--proxy")
    done = started(*how, bundle / "scripts/fastvsock", "--version", env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout) == (0, f"fastvsock {fastvsock.__version__}\n"), done.stderr


@pytest.mark.parametrize("how", ["sh", "python3"])
def test_a_launcher_without_its_binary_says_what_to_do(bundle: Path, binary: Path, how: str) -> None:
    installed(bundle, "--binary", binary)
    (bundle / PROGRAM).unlink()
    done = started(how, bundle / LAUNCHER, "--version", env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout) == (127, "")
    program = f"{bundle}/scripts/../{NAMED}"
    assert done.stderr == f"fastvsock: {program} cannot be run: install fastvsock again\n"


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
@pytest.mark.parametrize("shape", ["fork", "quotes-22222"])
def test_the_installed_exec_script_reaches_the_guest_without_python(
    tmp_path: Path, binary: Path, no_python: dict[str, str], endpoint: Endpoint, shape: str, arguments: list[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle", shape)
    script = bundle / "scripts/runcvm-ctr-exec"
    port = script.read_text().rpartition("/run/firecracker.vsock ")[2].split("'")[0].split('"')[0]
    put(script, script.read_text().replace(f"/run/firecracker.vsock {port}", f"{endpoint.uds} {SOURCE}"), 0o755)
    put(bundle / "usr/bin/dbclient", CLIENT, 0o755)
    installed(bundle, "--binary", binary, *arguments)
    command = ["bash", "-e", str(script), *ARGUMENTS]
    done = subprocess.run(
        command,
        env={**no_python, "RUNCVM_GUEST": str(bundle)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert done.stdout == pattern(SOURCE_SIZE), done.stderr


def test_an_exec_goes_through_a_channel_between_two_of_it_without_python_and_ssh(
    tmp_path: Path, binary: Path, no_python: dict[str, str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine: only root can run a command as another user")
    bundle, uds = make_bundle(tmp_path / "bundle"), tmp_path / "v.sock"
    script = bundle / "scripts/runcvm-ctr-exec"
    put(script, script.read_text().replace("/run/firecracker.vsock", str(uds)), 0o755)
    installed(bundle, "--binary", binary)
    for program in ("dbclient", "socat"):
        (bundle / "usr/bin" / program).unlink()
    environment = {**no_python, "RUNCVM_GUEST": str(bundle)}
    command = ["bash", "-e", str(script), "0:8:9,10", "/", "1", "false"]
    asked = ["sh", "-c", 'echo $(busybox id -u):$(busybox id -G) "$@"; cat; exit 9', "sh", "Ä", "… .txt"]
    with agent_of(bundle / PROGRAM, uds, no_python):
        done = subprocess.run(
            [*command, *asked], env=environment, input=b"a\nb\n", capture_output=True, timeout=HANG, check=False
        )
    assert (done.returncode, done.stderr) == (9, b"")
    assert done.stdout.decode() == "0:8 9 10 Ä … .txt\na\nb\n"


@contextmanager
def agent_of(program: Path, uds: Path, environment: dict[str, str]) -> Iterator[None]:
    """An agent by that program."""
    with start([str(program), "agent", "--listen", f"unix:{uds}"], stdin=subprocess.DEVNULL, env=environment) as child:
        assert child.stdout.readline() == f"listening on unix:{uds}\n".encode()
        yield


# dbclient, as far as it concerns a transport that has no process of its own, or is a port.
CLIENT = """#!/bin/bash
while [ $# -gt 1 ]; do
  case $1 in -p) port=$2;; esac
  shift
done
if [ "${port-}" ]; then exec cat <"/dev/tcp/127.0.0.1/$port"; fi
exec cat <&3
"""


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_known_exec_script_starts_the_binary_itself_as_it_started_the_launcher(
    tmp_path: Path, binary: Path, shape: str, arguments: list[str]
) -> None:
    words = {}
    sources: dict[str, list[str | Path]] = {"package": [], "binary": ["--binary", binary]}
    for kind, source in sources.items():
        python = kind == "package" and "usr/bin/python3" in exec_script(shape)
        bundle = make_bundle(tmp_path / kind, shape, python=python)
        result = runcvm("install", bundle, *source, *arguments)
        for name in (PROGRAM, NAMED, "scripts/fastvsock", LAUNCHER):
            (bundle / name).unlink(missing_ok=True)
        for name in (PROGRAM, NAMED) if kind == "binary" else ("scripts/fastvsock", LAUNCHER):
            put(bundle / name, RECORD, 0o755)
        text = (bundle / "scripts/runcvm-ctr-exec").read_text()
        assert ("# fastvsock:" in text) == (result.returncode == 0), result.stderr
        edited = [line for line in text.partition("# fastvsock:")[2].splitlines() if "python3" in line]
        words[kind] = [word.replace(str(bundle), "") for word in fallback(called(bundle, tmp_path / "record"))]
        assert not edited or kind == "package"
    transport = next((word for word in words["binary"] if LAUNCHER in word), "")  # of a dbclient that is a function
    assert "python3" not in transport
    assert [word for word in words["binary"] if word != transport] == [
        word for word in words["package"] if LAUNCHER not in word
    ]


def test_other_scripts_than_the_edited_ones_may_still_call_the_launcher(bundle: Path, binary: Path) -> None:
    put(bundle / "scripts/another", "#!/bin/sh\nexec python3 ${0%/*}/runcvm-vsock-connect --version\n", 0o755)
    installed(bundle, "--binary", binary)
    done = started(bundle / "scripts/another", env={"PATH": os.environ["PATH"]})
    assert done.stdout == VERSION


def packed(path: Path, binary: Path, compression: int) -> Path:
    """A wheel with the binary, as wheels/static/package.py makes it."""
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as wheel:
        for command in ("fastvsock", "runcvm-vsock-connect"):
            wheel.write(binary, f"fastvsock_static-{fastvsock.__version__}.data/scripts/{command}")
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_wheel_of_the_binary_is_taken_too(bundle: Path, binary: Path, tmp_path: Path, compression: int) -> None:
    wheel = packed(tmp_path / "fastvsock_static.whl", binary, compression)
    installed(bundle, "--wheel", wheel)
    assert (bundle / PROGRAM).read_bytes() == binary.read_bytes()
    assert launched(bundle, "--version") == VERSION


def test_the_binary_takes_a_wheel_that_is_not_compressed_and_says_why_it_takes_no_other(
    bundle: Path, binary: Path, tmp_path: Path, no_python: dict[str, str]
) -> None:
    before = snapshot(bundle)
    wheel = packed(tmp_path / "deflated.whl", binary, zipfile.ZIP_DEFLATED)
    done = started(binary, "runcvm", "install", "--root", bundle, "--wheel", wheel, env=no_python)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"fastvsock: {wheel}: it is compressed, and this fastvsock, one static executable, has no zlib: "
        "unzip it, and pass the fastvsock in its scripts with --binary\n"
    )
    assert snapshot(bundle) == before
    wheel = packed(tmp_path / "stored.whl", binary, zipfile.ZIP_STORED)
    done = started(binary, "runcvm", "install", "--root", bundle, "--wheel", wheel, env=no_python)
    assert done.returncode == 0, done.stderr
    assert exec_script("fork") != (bundle / "scripts/runcvm-ctr-exec").read_text()
