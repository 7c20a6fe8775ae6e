"""The edited exec script with the real dbclient, through the installed transport, to a real dropbear in the 'guest'."""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import HANG, called, started
from support.bundles import exec_script, make_bundle, put, runcvm
from support.installing import stand_in

UDS = "/run/firecracker.vsock"
COMMAND = "echo {port} {uds} \"a  b\" $HOME 'c'"
# dropbear looks for authorized_keys in the home that passwd(5) names: a mount namespace gives it another one.
ELSEWHERE = 'mount --bind "$1" /etc/passwd && shift && exec "$@"'
# A transport that works: what fails without fastvsock is the way in which it is started.
TRANSPORT = f"""#!/usr/bin/env python3
import os, sys
os.execv({sys.executable!r}, [{sys.executable!r}, "-m", "fastvsock.runcvm_vsock_connect", *sys.argv[1:]])
"""
VM_EXEC = "#!/bin/sh\nprintf '<%s>' \"$@\"; echo; cat; exit 7\n"


def needed(program: str) -> str:
    """Where a program is that the test cannot do without."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found, f"{program} is needed for this test"
    return found


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a VMM's socket `v.sock`, dropbear behind its ports 22 and 22222, and the `key` to log in with."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("this machine: needs a mount namespace of its own")
    folder = tmp_path_factory.mktemp("guest")
    for name in ("key", "host"):
        command = [needed("dropbearkey"), "-t", "ed25519", "-f", str(folder / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=HANG)
    shown = subprocess.run(
        [needed("dropbearkey"), "-y", "-f", folder / "key"], capture_output=True, text=True, check=True
    )
    (folder / "home/.ssh").mkdir(parents=True, mode=0o700)
    public = next(line for line in shown.stdout.splitlines() if line.startswith("ssh-"))
    put(folder / "home/.ssh/authorized_keys", public + "\n", 0o600)
    user = pwd.getpwuid(0)
    (folder / "passwd").write_text(f"{user.pw_name}:x:0:0::{folder}/home:/bin/sh\n")
    folder.chmod(0o755)
    server = shlex.join([needed("dropbear"), "-i", "-r", str(folder / "host")])
    emulator = [*called("fastvsock"), "emulate", str(folder / "v.sock")]
    services = [f"--exec={port}={server}" for port in (22, 22222)]
    command = ["unshare", "-m", "sh", "-c", ELSEWHERE, "sh", str(folder / "passwd"), *emulator, *services]
    with started(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        assert b"listening" in child.stdout.readline()
        yield folder


def bundle_for(guest: Path, folder: Path, shape: str, *arguments: str) -> Path:
    """A bundle that is installed into, with the real dbclient in it."""
    bundle = make_bundle(folder, shape)
    put(bundle / "scripts/runcvm-ctr-exec", exec_script(shape).replace(UDS, f"{guest}/v.sock"), 0o755)
    put(bundle / "scripts/runcvm-vm-exec", VM_EXEC, 0o755)
    (bundle / "usr/bin/dbclient").unlink()
    shutil.copy(needed("dbclient"), bundle / "usr/bin/dbclient")
    (bundle / "usr/bin/socat").unlink()
    assert runcvm("install", bundle, *arguments).returncode == 0
    return bundle


def execute(guest: Path, bundle: Path, data: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    """What `kubectl exec` would call, with the command `words`."""
    environment = {**os.environ, "RUNCVM_GUEST": str(bundle), "KEY": str(guest / "key")}
    command = ["bash", "-e", str(bundle / "scripts/runcvm-ctr-exec"), "0:0:", "/", "1", "false", *words]
    return subprocess.run(command, env=environment, input=data, capture_output=True, timeout=HANG, check=False)


FORMS: list[list[str]] = [[], ["--proxy"]]
VMM_PORT = "VSOCK-LISTEN:22,fork TCP:127.0.0.1:22222,retry=20,interval=0.5 &"


@pytest.mark.parametrize("arguments", FORMS)
def test_the_exec_script_with_quotes_that_socat_strips_never_works_before_and_works_after_install(
    guest: Path, tmp_path: Path, arguments: list[str]
) -> None:
    bundle = bundle_for(guest, tmp_path / "bundle", "quotes-22222", *arguments)
    assert runcvm("uninstall", bundle).returncode == 0
    for program in ("socat", "python3"):
        (bundle / "usr/bin" / program).symlink_to(needed(program))
    # The guest listens on 22, and nothing on the 22222 that the script names.
    (bundle / "scripts/docker").mkdir()
    put(bundle / "scripts/docker/firecracker-init.sh", f"#!/bin/sh\nsocat {VMM_PORT}\n", 0o755)
    put(bundle / "scripts/runcvm-vsock-connect", TRANSPORT, 0o755)
    before = execute(guest, bundle, b"data", "true")
    assert before.returncode == 1
    assert b"Remote closed the connection" in before.stderr
    assert runcvm("install", bundle, *arguments).returncode == 0
    assert f"{guest}/v.sock 22 -- " in (bundle / "scripts/runcvm-ctr-exec").read_text()
    after = execute(guest, bundle, b"data", "true")
    assert (after.returncode, after.stdout.partition(b"\n")[2]) == (7, b"data"), after.stderr


@pytest.mark.parametrize("arguments", FORMS)
def test_the_exec_script_of_the_global_proxy_needs_none_after_install(
    guest: Path, tmp_path: Path, arguments: list[str]
) -> None:
    bundle = bundle_for(guest, tmp_path / "bundle", "global-proxy", *arguments)
    script = bundle / "scripts/runcvm-ctr-exec"
    assert "/run/firecracker.vsock 22 -- " in script.read_text()
    script.write_text(script.read_text().replace(UDS, f"{guest}/v.sock"))
    result = execute(guest, bundle, b"data", "true")
    assert (result.returncode, result.stdout.partition(b"\n")[2]) == (7, b"data"), result.stderr


@pytest.mark.parametrize("shape", ["fork", "bash-22222"])
@pytest.mark.parametrize("arguments", FORMS)
def test_an_exec_reaches_the_guest_with_its_words_its_stdin_and_its_exit_status(
    guest: Path, tmp_path: Path, shape: str, arguments: list[str]
) -> None:
    bundle = bundle_for(guest, tmp_path / "bundle", shape, *arguments)
    data = os.urandom(300_000)
    result = execute(guest, bundle, data, "sh", "-c", COMMAND)
    assert result.returncode == 7, result.stderr
    line, _, rest = result.stdout.partition(b"\n")
    assert rest == data
    words = line.strip(b"<>").split(b"><")
    assert words[0] == b"0:0:"
    decoded = words[2].translate(bytes.maketrans(b"\x80\x81\x82\x83\x84\x85", b"\t\n '\"\\"))
    assert decoded.decode() == "".join(f"{word}\n" for word in ("sh", "-c", COMMAND))


@pytest.mark.parametrize("arguments", FORMS)
def test_a_guest_that_was_started_before_the_installation_has_no_agent_and_is_reached_by_dbclient(
    guest: Path, tmp_path: Path, arguments: list[str]
) -> None:
    binary = stand_in(tmp_path / "fastvsock")
    bundle = bundle_for(guest, tmp_path / "bundle", "fork", "--binary", str(binary), *arguments)
    assert "--or-else" in (bundle / "scripts/runcvm-ctr-exec").read_text()
    data = os.urandom(300_000)
    result = execute(guest, bundle, data, "cat")
    assert result.returncode == 7, result.stderr
    line, _, rest = result.stdout.partition(b"\n")
    assert line.startswith(b"<0:0:><")
    assert rest == data


@pytest.mark.parametrize("arguments", FORMS)
def test_execs_at_once_do_not_meet(guest: Path, tmp_path: Path, arguments: list[str]) -> None:
    bundle = bundle_for(guest, tmp_path / "bundle", "fork", *arguments)

    def one(number: int) -> bool:
        data = os.urandom(20_000)
        result = execute(guest, bundle, data, f"number{number}")
        head = f"number{number}".encode()
        return result.returncode == 7 and head in result.stdout and result.stdout.endswith(data)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))
