"""The installed launcher: it runs from the bundle alone, and reaches the guest."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

import fastvsock
from support import HANG, SOURCE, SOURCE_SIZE, Endpoint, pattern
from support.bundles import ARGUMENTS, exec_script, put
from support.installing import LAUNCHER, installed, launched


@pytest.mark.parametrize("how", [[], ["python3"], ["bash"], ["sh"]])
def test_the_launcher_runs_from_the_bundle_alone_wherever_it_is_seen(
    whole: Path, tmp_path: Path, how: list[str]
) -> None:
    installed(whole)
    seen = tmp_path / "seen elsewhere/guest"
    seen.parent.mkdir()
    whole.rename(seen)
    spoiled = tmp_path / "image's own"
    (spoiled / "fastvsock").mkdir(parents=True)
    (spoiled / "fastvsock/__init__.py").write_text("raise SystemExit('the wrong package')")
    version = f"runcvm-vsock-connect {fastvsock.__version__}\n"
    assert launched(seen, "--version", before=how, PYTHONPATH=str(spoiled)) == version
    link = tmp_path / "linked"
    link.symlink_to(seen / LAUNCHER)
    command = [*how, str(link), "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG).stdout == version


def test_the_launcher_runs_the_bundles_python_through_its_linker_and_nothing_that_is_not_needed(whole: Path) -> None:
    installed(whole)
    strace = shutil.which("strace")
    assert strace, "strace is needed for this test"
    trace = whole.parent / "trace"
    launched(whole, "--version", before=[strace, "-f", "-e", "trace=execve,openat", "-s", "999", "-o", str(trace)])
    calls = trace.read_text()
    root = f"{whole}/scripts/.."
    assert f'execve("{root}/lib/ld", ["{root}/lib/ld", "{root}/usr/bin/python3"' in calls
    ours = [line for line in calls.splitlines() if "/lib/fastvsock/" in line and "= -1" not in line and ".py" in line]
    assert ours
    assert all(".pyc" in line for line in ours), "each start compiles the package"
    assert not [line for line in calls.splitlines() if "site-packages" in line or "/argparse" in line]


def test_the_installed_transport_carries_bytes_both_ways(whole: Path, endpoint: Endpoint) -> None:
    installed(whole)
    for how in ([], ["python3"]):
        command = [*how, str(whole / LAUNCHER), "--linger", endpoint.linger, endpoint.uds, "7"]
        data = os.urandom(endpoint.size(1 << 20))
        result = subprocess.run(command, input=data, capture_output=True, timeout=HANG, check=False)
        assert (result.returncode, result.stdout) == (0, data), result.stderr


def test_a_bundle_without_python_gets_a_launcher_that_takes_the_one_in_path(bundle: Path, tmp_path: Path) -> None:
    said = installed(bundle).stderr
    assert "no python3 in the bundle: " in said
    assert "in a container without python3 3.11 or newer every exec and cp will fail: add python3" in said
    assert "BUNDELF_BINARIES" in said
    assert launched(bundle, "--version").startswith("runcvm-vsock-connect ")
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["/bin/sh", str(bundle / LAUNCHER), "--version"]
    result = subprocess.run(
        command, env={"PATH": str(empty)}, capture_output=True, text=True, check=False, timeout=HANG
    )
    assert result.returncode == 127
    assert result.stderr.startswith("fastvsock: no python3 in this PATH")


# dbclient, as far as it concerns a transport: what comes from the guest is printed, whichever way it is reached.
CLIENT = """#!/bin/bash
while [ $# -gt 1 ]; do
  case $1 in -J) transport=$2;; -p) port=$2;; esac
  shift
done
case ${transport-} in
  '') exec cat <"/dev/tcp/127.0.0.1/$port";;
  '&3') exec cat <&3;;
  *) exec sh -c "exec $transport" </dev/null;;
esac
"""


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
def test_the_installed_exec_script_waits_for_a_guest_that_boots(
    whole: Path, endpoint: Endpoint, tmp_path: Path, arguments: list[str]
) -> None:
    late = tmp_path / "v.sock"
    script = exec_script("fork").replace('/run/firecracker.vsock 22"', f'{late} {SOURCE}"')
    put(whole / "scripts/runcvm-ctr-exec", script, 0o755)
    put(whole / "usr/bin/dbclient", CLIENT, 0o755)
    installed(whole, *arguments)
    boot = threading.Timer(0.7, late.symlink_to, [endpoint.uds])
    boot.start()
    result = subprocess.run(
        ["bash", "-e", str(whole / "scripts/runcvm-ctr-exec"), *ARGUMENTS],
        env={**os.environ, "RUNCVM_GUEST": str(whole)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    boot.join()
    assert result.stdout == pattern(SOURCE_SIZE), result.stderr


@pytest.mark.parametrize("arguments", [[], ["--proxy"]])
def test_the_installed_exec_script_reaches_the_guest_by_the_installed_transport(
    whole: Path, endpoint: Endpoint, arguments: list[str]
) -> None:
    script = exec_script("fork").replace('/run/firecracker.vsock 22"', f'{endpoint.uds} {SOURCE}"')
    put(whole / "scripts/runcvm-ctr-exec", script, 0o755)
    put(whole / "usr/bin/dbclient", CLIENT, 0o755)
    installed(whole, *arguments)
    command = ["bash", "-e", str(whole / "scripts/runcvm-ctr-exec"), *ARGUMENTS]
    environment = {**os.environ, "RUNCVM_GUEST": str(whole)}
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False
    )
    assert result.stdout == pattern(SOURCE_SIZE), result.stderr
