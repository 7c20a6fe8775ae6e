"""The copies of the repository in which the mutants live, and the environment of the tool itself."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutants"
PINS = Path(__file__).with_name("tools.txt")


def tools() -> Path:
    """The Python of an environment with what tools.txt pins, made where it is missing."""
    folder = BUILD / f"tools-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    made = folder / "made"
    if not made.exists():
        venv.create(folder, with_pip=True, clear=True)
        # Of all that is pinned, yattag alone is published as source only.
        wheels = ["--only-binary=:all:", "--no-binary=yattag"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--require-hashes", *wheels, "-r", PINS], check=True)
        made.touch()
    return python


def prepare(number: int) -> Path:
    """The copy with this number: the files as they are in the working tree now, and `make build` done."""
    copy = BUILD / f"copy{number}"
    if number and _installed(copy) != _installed(BUILD / "copy0"):
        shutil.rmtree(copy, ignore_errors=True)
        _duplicate(BUILD / "copy0", copy)
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, check=True, capture_output=True)
    names = {name.decode() for name in listed.stdout.split(b"\0") if name and (ROOT / name.decode()).is_file()}
    for name in names:
        _copy(ROOT / name, copy / name)
    for folder in "src", "tests":
        for path in (copy / folder).rglob("*.py"):
            if path.relative_to(copy).as_posix() not in names:
                path.unlink()
    subprocess.run(["make", "--silent", "build", f"PYTHON={sys.executable}"], cwd=copy, check=True)
    return copy


def _installed(copy: Path) -> float:
    """When make has installed the package there; 0.0 if it has not."""
    stamp = copy / ".venv" / ".installed"
    return stamp.stat().st_mtime if stamp.exists() else 0.0


def _duplicate(first: Path, copy: Path) -> None:
    """A copy of the first copy, environment included, which takes seconds where pip takes minutes."""
    shutil.copytree(first, copy, symlinks=True, copy_function=_link_packages)
    packages = next(copy.glob(".venv/lib/*/site-packages"))
    for path in [*copy.glob(".venv/bin/*"), *packages.glob("*.pth"), *packages.glob("fastvsock-*/*")]:
        if path.is_file() and not path.is_symlink():
            content, mode = path.read_bytes(), path.stat().st_mode
            path.unlink()  # it may be the first copy's too
            path.write_bytes(content.replace(bytes(first), bytes(copy)))
            path.chmod(mode)


def _link_packages(source: str, target: str) -> None:
    """Hundreds of megabytes that nobody changes are shared."""
    if "/site-packages/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _copy(source: Path, target: Path) -> None:
    """Only where something changed: make looks at the time of a file."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(source.stat().st_mode)
