"""The binary alone in a machine with an old kernel: no /proc, no /dev but the console, and its first process too."""

import re
from pathlib import Path

import pytest

from support import kernels

ENGINES = ("splice", "copy")
# Both engines, against the binary's own emulator and agent. The agent's command is the binary's interpreter.
INIT = """
import os, subprocess
os.mknod("/dev/null", 0o20666, os.makedev(1, 3))
print("system", os.uname().release)
vmm = subprocess.Popen(["/fastvsock", "emulate", "--agent", "/v.sock"])
data = os.urandom(300_000)
cat = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
for engine in {engines}:
    for name, words in {{
        "connect": ["/runcvm-vsock-connect", "--wait", "60", "/v.sock", "7"],
        "exec": ["/fastvsock", "exec", "-i", "--wait", "60", "--timeout", "60", "/v.sock", "/init", cat],
    }}.items():
        last = words.index("/v.sock")
        words[last:last] = ["--engine", engine, "--stats"]
        done = subprocess.run(words, input=data, capture_output=True)
        print(name, engine, done.returncode, done.stdout == data, done.stderr.count(f", {{engine}}".encode()))
"""


@pytest.fixture(scope="module")
def old_kernel(machine: str) -> Path:
    """An old kernel, for the machine that its images are made for."""
    if machine != "x86_64":
        pytest.skip("by design: the old kernel is one for x86_64")
    return kernels.old()


def test_under_an_old_kernel_connections_and_commands_work(
    old_kernel: Path, fastvsock: Path, probe: Path, tmp_path: Path
) -> None:
    program = fastvsock.read_bytes()
    files = {"init": probe.read_bytes(), "fastvsock": program, "runcvm-vsock-connect": program}
    files["init.py"] = INIT.format(engines=ENGINES).encode()
    said = kernels.boot(old_kernel, tmp_path, files, "exec(open('/init.py').read())")
    assert re.search(r"(?m)^system 5\.10\.", said), said
    for name in ("connect", "exec"):
        for engine in ENGINES:
            assert f"{name} {engine} 0 True 2\r\n" in said, said
