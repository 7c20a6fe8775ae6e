"""A RunCVM bundle to test with: real programs run through a real `lib/ld`, and scripts in the shapes that are known.

The bundle's dynamic linker, busybox, bash and Python are this machine's own. dbclient and socat are stand-ins that
write down how they were called.
"""

import glob
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from fastvsock.cli import umbrella
from support import HANG, ROOT

SHELL_SCRIPTS = ROOT / "tests" / "runcvm"  # RunCVM's own, in the shapes that are known
SHAPES = sorted(path.stem for path in SHELL_SCRIPTS.glob("exec/*.sh") if path.stem != "head")
ALIASES = sorted(path.stem for path in SHELL_SCRIPTS.glob("defaults/*.sh"))
INITS = sorted(path.stem for path in SHELL_SCRIPTS.glob("init/*.sh"))
OLD_TRANSPORT = (
    "#!/bin/bash\n# A pipeline, as it was\n{ printf 'CONNECT %s\\n' \"$2\"; cat; } | socat UNIX-CONNECT:$1 -\n"
)
OTHER_MACHINE, OTHER = ("aarch64", 183) if os.uname().machine == "x86_64" else ("x86_64", 62)
# As the launchers are: for the kernel, for a shell and for Python.
RECORD = """#!/bin/sh
''':'
printf '%s\\0' "$@" > "$RECORD/${0##*/}"
exit
'''
import os, sys
with open(os.environ["RECORD"] + "/" + os.path.basename(sys.argv[0]), "wb") as record:
    record.write(b"".join(os.fsencode(word) + bytes(1) for word in sys.argv[1:]))
"""
# The words that the remote command is made of: all that quoting can go wrong with.
ARGUMENTS = ["0:0:", "/some where", "1", "true", "sh", "-c", "echo \"a  b\" 'c' $HOME `id` \\ {port} *; exit 3"]


def exec_script(shape: str) -> str:
    """runcvm-ctr-exec with the proxy block of that shape."""
    return (SHELL_SCRIPTS / "exec/head.sh").read_text() + (SHELL_SCRIPTS / f"exec/{shape}.sh").read_text()


def make_bundle(folder: Path, shape: str = "fork", aliases: str = "long", *, python: bool = False) -> Path:
    """A bundle in `folder`, which is made. With `python` it has one of its own, and installing takes longer."""
    for name in ("bin", "lib", "scripts", "usr/bin"):
        (folder / name).mkdir(parents=True)
    linker = next(path for path in sorted(glob.glob("/lib64/ld-linux-*.so.?") + glob.glob("/lib/ld-linux-*.so.?")))
    shutil.copy(linker, folder / "lib" / os.path.basename(linker))
    (folder / "lib/ld").symlink_to(f"./{os.path.basename(linker)}")
    programs = {"bin/busybox": "busybox", "bin/bash": "bash", **({"usr/bin/python3": sys.executable} if python else {})}
    for place, program in programs.items():
        found = shutil.which(program)
        assert found, f"{program} is needed for this test"
        shutil.copy(os.path.realpath(found), folder / place)
    for applet in ("awk", "cat", "sh", "tr"):
        (folder / "bin" / applet).symlink_to("busybox")
    put(folder / "scripts/runcvm-ctr-exec", exec_script(shape), 0o755)
    put(folder / "scripts/runcvm-ctr-defaults", (SHELL_SCRIPTS / f"defaults/{aliases}.sh").read_text(), 0o644)
    put(folder / "scripts/runcvm-vsock-connect", OLD_TRANSPORT, 0o755)
    put(folder / "usr/bin/dbclient", RECORD, 0o755)
    put(folder / "usr/bin/socat", RECORD, 0o755)
    return folder


def of_another_machine(bundle: Path) -> None:
    """Have the bundle's programs say that they are for `OTHER_MACHINE`, as those of a node of that kind do."""
    for path in (*(bundle / "bin").iterdir(), *(bundle / "lib").iterdir(), *(bundle / "usr/bin").iterdir()):
        if path.is_file() and not path.is_symlink() and (data := path.read_bytes()).startswith(b"\x7fELF"):
            path.write_bytes(data[:18] + OTHER.to_bytes(2, "little") + data[20:])


def put(path: Path, text: str, mode: int) -> None:
    """A file with that content and mode, in place of the one that is there."""
    path.write_text(text)
    path.chmod(mode)


def fastvsock(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the umbrella command, in this process: what it prints, and its exit status."""
    words = list(map(str, arguments))
    out = io.StringIO()
    with tempfile.TemporaryFile() as err, redirect_stdout(out):
        stderr = os.dup(2)
        os.dup2(err.fileno(), 2)
        try:
            status = umbrella.run(words)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        err.seek(0)
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.read().decode())


def runcvm(command: str, bundle: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `fastvsock runcvm COMMAND` on a bundle."""
    return fastvsock("runcvm", command, "--root", bundle, *arguments)


def snapshot(bundle: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below the bundle, with its mode and content (or a link's target)."""
    found = {}
    for path in sorted(bundle.rglob("*")):
        content = os.readlink(path).encode() if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(bundle))] = (path.lstat().st_mode, content)
    return found


def called(bundle: Path, record: Path, *arguments: str, **variables: str) -> list[str]:
    """Run the bundle's runcvm-ctr-exec by bash; return what dbclient was called with, or a launcher in its place.

    A launcher is seen only where `RECORD` stands in for it.
    """
    record.mkdir(exist_ok=True)
    names = ("dbclient", "fastvsock", "runcvm-vsock-connect")
    for name in names:
        (record / name).unlink(missing_ok=True)
    path = f"{bundle}/usr/bin:{os.environ['PATH']}"
    environment = {**os.environ, "RUNCVM_GUEST": str(bundle), "RECORD": str(record), "PATH": path, **variables}
    command = ["bash", "-e", bundle / "scripts/runcvm-ctr-exec", *(arguments or ARGUMENTS)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    assert result.returncode == 0, result.stderr
    words = next((record / name).read_text("latin-1") for name in names if (record / name).exists())
    return words.split("\0")[:-1]


def fallback(words: list[str]) -> list[str]:
    """What the program after --or-else is called with, where `fastvsock exec` was called with these words."""
    return words[words.index("--or-else") + 2 : words.index(";")] if "--or-else" in words else words


def findings(*arguments: str | Path, code: int | None = None) -> dict[str, dict[str, str]]:
    """The findings of `doctor` or, with `--root` among the arguments, `runcvm check`, by their names."""
    command = ["runcvm", "check"] if "--root" in arguments else ["doctor"]
    result = fastvsock(*command, "--json", *arguments)
    found = {finding["check"]: finding for finding in json.loads(result.stdout)}
    failed = any(finding["state"] == "failed" for finding in found.values())
    assert result.returncode == (1 if failed else 0) == (failed if code is None else code)
    assert all(finding["advice"] for finding in found.values() if finding["state"] != "ok")
    return found
