"""What building and validating share: where things lie, how commands are run, and which Pythons there are.

Everything made on the way stands in one cache folder outside the repository ($FASTVSOCK_WHEELS_CACHE, else
fastvsock-wheels in the user's cache): environments named after the digest of their requirements, so that a changed
pin makes a new one, and interpreters that take minutes to build. Only the finished wheels and the reports about them
come back into the repository.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = getattr(sys, "_base_executable", "") or sys.executable  # that runs this, outside any virtual environment
NEWEST_MINOR = 20  # of Python 3; names up to python3.20 are looked for
OLDEST_MINOR = 11

# What an interpreter tells of itself. A free-threaded one has no Limited API, and an abi3 wheel is not for it. Debian's
# pyconfig.h only names another file, in a folder of the system's compiler where no other compiler looks.
_ASK = """
import json, os, platform, sys, sysconfig
gnu = sysconfig.get_config_var("HOST_GNU_TYPE") or ""
try:
    headers = "#define SIZEOF_LONG" in open(os.path.join(sysconfig.get_path("include"), "pyconfig.h")).read()
except OSError:
    headers = False
print(json.dumps({
    "implementation": platform.python_implementation(),
    "version": platform.python_version(),
    "machine": platform.machine(),
    "libc": "musl" if "musl" in gnu else "glibc",
    "threads_free": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "base": os.path.realpath(sys.base_prefix),
    "headers": headers,
}))
"""


class Failed(Exception):
    """Something that a person should read in one sentence."""


@dataclass(frozen=True)
class Interpreter:
    """A CPython found on this machine."""

    executable: str
    version: str
    machine: str
    libc: str
    base: str
    headers: bool


def cache() -> Path:
    """The folder for everything that is made on the way; it exists."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastvsock-wheels"
    folder = Path(os.environ.get("FASTVSOCK_WHEELS_CACHE") or usual).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    fine: tuple[int, ...] = (0,),
) -> str:
    """Run `command` and return its stdout. Raises `Failed`, with its last words, for a status not in `fine`.

    After `timeout` seconds, or where this program is interrupted, all that the command has started is killed.
    """
    words = [str(word) for word in command]
    try:
        child = subprocess.Popen(
            words,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=0o022,
            process_group=0,
        )
    except OSError as error:
        raise Failed(f"{Path(words[0]).name}: {error}") from None
    with child:
        try:
            out, err = child.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"{Path(words[0]).name}: {error}") from None
            raise
    if child.returncode not in fine:
        said = "\n".join((out + err).strip().splitlines()[-25:])
        raise Failed(f"exit status {child.returncode} from {' '.join(words)}\n{said}")
    return out


def say(text: str) -> None:
    """One line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def version() -> str:
    """The version in src/fastvsock/__init__.py, where alone it stands; read without importing the package."""
    text = (ROOT / "src" / "fastvsock" / "__init__.py").read_text()
    (found,) = re.findall(r'(?m)^__version__ = "(.+)"$', text)
    return str(found)


def is_release() -> bool:
    """Whether this is the source of a release. What lies in wheels/ is then built from it, and validated in full."""
    return ".dev" not in version()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shipped() -> dict[str, str]:
    """The wheels in wheels/ and their SHA-256, as SHA256SUMS tells; empty where there are none."""
    sums = HERE / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.exists() else []
    return {name: digest for digest, name in (line.split() for line in lines)}


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS about all wheels in a folder."""
    wheels = sorted(folder.glob("*.whl"))
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(wheel)}  {wheel.name}\n" for wheel in wheels))


def environment(name: str, python: str) -> Path:
    """The Python of a virtual environment with exactly what `NAME.txt` beside this file pins."""
    pins = HERE / f"{name}.txt"
    key = hashlib.sha256(pins.read_bytes() + run([python, "-VV"]).encode() + python.encode()).hexdigest()[:16]
    folder = cache() / "environments" / f"{name}-{key}"
    made = folder / "bin" / "python"
    if not (folder / ".complete").exists():
        say(f"{name}: installing the pinned tools (once)")
        shutil.rmtree(folder, ignore_errors=True)
        run([python, "-m", "venv", folder])
        run([made, "-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary=:all:", "-r", pins])
        (folder / ".complete").touch()
    return made


def interpreters() -> list[Interpreter]:
    """Every CPython from 3.11 on that PATH or pyenv knows, oldest first, one of each version and place."""
    found: dict[str, Interpreter] = {}
    for path in _candidates():
        try:
            facts = json.loads(run([path, "-I", "-c", _ASK], timeout=60))
        except (Failed, ValueError):
            continue  # a pyenv shim without a version behind it, for instance
        if facts.pop("implementation") != "CPython" or facts.pop("threads_free"):
            continue
        if _key(facts["version"]) >= (3, OLDEST_MINOR):
            found.setdefault(facts["base"], Interpreter(executable=path, **facts))
    return sorted(found.values(), key=lambda one: (_key(one.version), one.executable))


def _candidates() -> Iterator[str]:
    yield PYTHON
    pyenv = shutil.which("pyenv")
    if pyenv:
        versions = Path(run([pyenv, "root"]).strip()) / "versions"
        yield from (str(path) for path in sorted(versions.glob("3.*/bin/python3")))
    for folder in dict.fromkeys(os.get_exec_path()):
        for minor in range(OLDEST_MINOR, NEWEST_MINOR + 1):
            path = shutil.which(f"python3.{minor}", path=folder)
            if path and "shims" not in Path(path).parts:  # pyenv's: it was asked above
                yield path


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
