"""Builds the C programs in `peers/`, once for each state of their sources, below `build/bench` in the repository."""

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = Path(__file__).parent / "peers"
BUILD = ROOT / "build" / "bench"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-pthread")


class BuildError(Exception):
    """A program that cannot be built; the text is a sentence."""


@cache
def program(name: str) -> str:
    """Build `peers/<name>.c` unless it is built already, and return the path. Raises `BuildError`."""
    source = SOURCES / f"{name}.c"
    state = hashlib.sha256(source.read_bytes() + (SOURCES / "common.h").read_bytes()).hexdigest()[:12]
    built = BUILD / f"{name}-{state}"
    if built.exists():
        return str(built)
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise BuildError("no C compiler (cc) for the ends of the measurements: install gcc")
    built.parent.mkdir(parents=True, exist_ok=True)
    unfinished = built.with_suffix(f".{os.getpid()}")  # another run may build the same one
    done = subprocess.run(
        [compiler, *FLAGS, "-o", str(unfinished), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"{source.name} does not compile:\n{done.stderr}")
    unfinished.replace(built)
    return str(built)
