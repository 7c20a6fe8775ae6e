"""`make validate-wheels`: each wheel file is installed alone, looked at, run and measured, or it is rejected.

Looked at from outside: auditwheel (is the platform tag true?), abi3audit (is the Limited API all that it uses?),
check-wheel-contents, twine, and our own list of what belongs into a wheel. Run in every place that there is for it
(places.py): an import proves little, since a musl Python imports a glibc wheel too, so the core of the behaviour tests
moves bytes with both engines, and where pytest can run, the tests themselves do. Measured with pyperf: a splice engine
that is missing, that falls back, or that does not clearly beat the copy engine beside it on CPU time, is no reason to
ship a wheel. The two are compared within one run, a few seconds apart, and the median of those ratios counts. Two more
ratios are of what a user waits for: a start against the interpreter's, and exec against dbclient.

A full run writes VALIDATION.json and, from it, VALIDATION.md.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wheels import places
from wheels.build import TARGETS, Target, digest, sources
from wheels.common import HERE, PYTHON, ROOT, Failed, cache, environment, run, say, sha256, version
from wheels.places import Place
from wheels.report import markdown
from wheels.static import validate as binaries
from wheels.static.build import MACHINES
from wheels.static.package import COMMANDS, platforms, wheel_name
from wheels.verdict import FULL, LIMIT, QUICK, Pace, compare, failed, medians, reasons, text, waits

TESTS = (
    "tests/core/test_engines.py",
    "tests/core/test_handshake.py",
    "tests/connect/test_handshake.py",
    "tests/connect/test_behaviour.py",
)
CONSOLE_SCRIPT = "fastvsock = fastvsock.cli:main"
STATIC = {".".join(platforms(machine)): machine for machine in MACHINES}  # a wheel's platform tag, and its machine
EXTENSIONS = [f"fastvsock/{name}.abi3.so" for name in ("copying/_openat2", "engines/_frames", "engines/_splice")]
LARGEST = 200_000  # bytes of the extension; a build that lost -O3 has four times as many


def main(arguments: list[str]) -> int:
    """Validate what the command line says; 1 if a wheel is rejected."""
    parser = argparse.ArgumentParser(prog="python -m wheels.validate", description=__doc__.partition("\n")[0])
    parser.add_argument("--wheels", type=Path, default=HERE, help="the folder with the wheels (default: wheels/)")
    parser.add_argument("--report", type=Path, help="the folder for the report (default: wheels/ if the run is full)")
    parser.add_argument("--quick", action="store_true", help="short measures, one test file, the oldest CPython only")
    parser.add_argument("--native", action="store_true", help="only the wheels for this machine's own interpreters")
    parser.add_argument("--only", action="append", choices=[*(target.platform for target in TARGETS), *STATIC])
    options = parser.parse_args(arguments)
    native = places.native()
    kinds = {(place.machine, place.libc) for place in native}
    targets = [target for target in TARGETS if not options.only or target.platform in options.only]
    static = [machine for platform, machine in STATIC.items() if not options.only or platform in options.only]
    if options.native:
        targets = [target for target in targets if (target.machine, target.libc) in kinds]
        static = [machine for machine in static if machine == os.uname().machine]
    try:
        report = validate(options.wheels, targets, static, native, options.quick)
    except Failed as error:
        say(f"wheels: {error}")
        return 1
    full = (targets, static) == (list(TARGETS), list(MACHINES)) and not options.quick
    folder = options.report or (HERE if full else None)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "VALIDATION.json").write_text(json.dumps(report, indent=2) + "\n")
        (folder / "VALIDATION.md").write_text(markdown(report))
    print(markdown(report))
    return 0 if all(not wheel["reasons"] for wheel in report["wheels"]) else 1


def validate(
    folder: Path, targets: list[Target], static: list[str], native: list[Place], quick: bool
) -> dict[str, Any]:
    """Validate the wheels of `targets`, and those with the binaries for the machines `static`, in `folder`.

    Raises `Failed` where one is not there or tools are missing.
    """
    if not targets and not static:
        raise Failed("no wheel is for this machine's interpreters")
    started = time.monotonic()
    names = {f"fastvsock-{version()}-cp311-abi3-{target.platform}.whl": target for target in targets}
    missing = [name for name in (*names, *map(wheel_name, static)) if not (folder / name).exists()]
    if missing:
        raise Failed(f"not in {folder} (make wheels binaries): {', '.join(missing)}")
    wheels = [_validate_one(folder / name, target, native, quick) for name, target in names.items()]
    wheels += [binaries.validate_one(folder / wheel_name(machine), machine, quick) for machine in static]
    return {
        "version": version(),
        "source": digest(),
        "quick": quick,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": {
            "kernel": platform.release(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "limit": LIMIT,
        "wheels": wheels,
    }


def _validate_one(wheel: Path, target: Target, native: list[Place], quick: bool) -> dict[str, Any]:
    say(f"{wheel.name}")
    audits = {name: _outcome(audit, wheel, target) for name, audit in AUDITS.items()}
    runs = []
    try:
        where = [place for place in native if (place.machine, place.libc) == (target.machine, target.libc)]
        where = where or [places.foreign(target.machine, target.libc)]
        for place in where[:1] if quick else where:
            say(f"  {place.name}")
            runs.append(_run_in(wheel, target, place, quick))
    except Failed as error:
        audits["a place to run it"] = failed(error)
    return {
        "name": wheel.name,
        "sha256": sha256(wheel),
        "bytes": wheel.stat().st_size,
        "audits": audits,
        "runs": runs,
        "reasons": reasons(audits, runs),
    }


# What is seen from outside


def _tool(*words: str | Path) -> str:
    """Run one of the audit tools and return what it said. Raises `Failed`."""
    return run([_tools(), "-m", *words], timeout=300)


def _tools() -> Path:
    return environment("audit", PYTHON)


def _outcome(audit: Callable[[Path, Target], str], wheel: Path, target: Target) -> str:
    return text(lambda: audit(wheel, target))


def _auditwheel(wheel: Path, target: Target) -> str:
    said = " ".join(_tool("auditwheel", "show", wheel).split())
    found = re.search(r'is consistent with the following platform tag: "([a-z]+)_(\d+)_(\d+)_(\w+)"', said)
    family, major, minor = target.tag.split("_")
    # An older libc than the tag's is enough for it: then the tag promises less than it could.
    if not found or found.group(1, 4) != (family, target.machine) or _pair(found) > (int(major), int(minor)):
        raise Failed(f"the platform tag {target.platform} is not true; auditwheel says: {said}")
    return f"true: {'_'.join(found.groups())}"


def _pair(found: "re.Match[str]") -> tuple[int, int]:
    return int(found[2]), int(found[3])


def _abi3audit(wheel: Path, target: Target) -> str:
    said = _tool("abi3audit", "--strict", "--report", "--", wheel)
    found = next(iter(json.loads(said)["specs"].values()))["wheel"][0]["result"]
    if not found["is_abi3"] or found["non_abi3_symbols"] or found["future_abi3_objects"]:
        raise Failed(said)
    return f"abi3 of {found['baseline']}, computed {found['computed']}"


def _check_wheel_contents(wheel: Path, target: Target) -> str:
    _tool("check_wheel_contents", wheel)
    return "OK"


def _twine(wheel: Path, target: Target) -> str:
    _tool("twine", "--no-color", "check", "--strict", wheel)
    return "PASSED"


def contents(wheel: Path, target: Target | None = None) -> str:
    """Compare what is in a wheel with the source, byte for byte. Raises `Failed`."""
    release = "-".join(wheel.name.split("-")[:2])
    info = f"{release}.dist-info"
    package = [path for path in sources() if path.parts[0] == "src" and path.suffix not in (".pyx", ".pxd")]
    wanted = {path.relative_to("src").as_posix(): ROOT / path for path in package}
    wanted = {f"{release}.data/{n}" if n.startswith("scripts/") else n: path for n, path in wanted.items()}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.startswith(f"{info}/")]
        if sorted(names) != sorted([*wanted, *EXTENSIONS]):
            raise Failed(f"has other files than the source: {sorted(set(names) ^ {*wanted, *EXTENSIONS})}")
        different = [name for name, path in wanted.items() if archive.read(name) != path.read_bytes()]
        if different:
            raise Failed(f"differs from the source: {', '.join(different)}")
        if archive.read(f"{info}/licenses/LICENSE") != (ROOT / "LICENSE").read_bytes():
            raise Failed("has another LICENSE")
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        if scripts.strip().splitlines() != ["[console_scripts]", CONSOLE_SCRIPT]:
            raise Failed(f"has other commands: {scripts}")
        sizes = [archive.getinfo(extension).file_size for extension in EXTENSIONS]
        if max(sizes) > LARGEST:
            raise Failed(f"has an extension of {max(sizes)} bytes, as one that was built without -O3")
    return f"{len(wanted)} files as in the source, extensions of {sum(sizes) // 1024} KiB"


AUDITS: dict[str, Callable[[Path, Target], str]] = {
    "auditwheel": _auditwheel,
    "abi3audit": _abi3audit,
    "check-wheel-contents": _check_wheel_contents,
    "twine check": _twine,
    "contents": contents,
}


# What is seen when it runs


class Room:
    """A fresh environment in a place, with one wheel in it and nothing else."""

    def __init__(self, wheel: Path, target: Target, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder
        self._installed = folder / "environment"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FASTVSOCK"))}
        install: list[str | Path] = [_tools(), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        if place.complete:
            run([place.python, "-m", "venv", "--without-pip", self._installed])
            self.python = str(self._installed / "bin" / "python")
            self._pip = [*install, "--python", self.python, "install"]
            run([*self._pip, "--no-index", "--no-deps", wheel], timeout=300)
            return
        # A Python without zlib, or emulated, unpacks no wheel; pip does it for that platform, and looks at its tag.
        self.python = place.python
        self.env["PYTHONPATH"] = str(self._installed)
        tags = ["--platform", target.platform, "--implementation", "cp", "--abi", "abi3", "--python-version", "311"]
        run([*install, "install", "--target", self._installed, *tags, "--no-index", "--no-deps", wheel], timeout=300)

    def add_tools(self) -> None:
        """pytest and pyperf, or pyperf alone where only pure Python can be added."""
        if self.place.complete:
            run([*self._pip, "--require-hashes", "--only-binary=:all:", "-r", HERE / "run.txt"], timeout=600)
            return
        tools = environment("run", PYTHON)
        found = run([tools, "-c", "import os, pyperf; print(os.path.dirname(pyperf.__file__))"]).strip()
        shutil.copytree(found, self._installed / "pyperf")

    def core(self) -> str:
        """The core check, beside which nothing else lies."""
        script = shutil.copy(HERE / "core_check.py", self.folder)
        command = [self.python, script, "--python", self.python]
        facts = json.loads(run(command, env=self.env, cwd=self.folder, timeout=900, fine=(0, 1)))
        if facts["failures"]:
            told = (f"{name}: {trace.strip().splitlines()[-1]}" for name, trace in facts["failures"].items())
            raise Failed("; ".join(told))
        if not facts["package"].startswith(str(self._installed)) or facts["version"] != version():
            raise Failed(f"it was not the wheel that ran, but {facts['package']} {facts['version']}")
        return f"{len(facts['checks'])} checks"

    def commands(self) -> None:
        """The wheel's commands start."""
        for name in COMMANDS:
            said = run([*self._words(name), "--version"], env=self.env, timeout=120)
            if said.strip() != f"{name} {version()}":
                raise Failed(f"{name} --version says {said!r}")

    def _words(self, name: str) -> list[str]:
        script = str(self._installed / "bin" / name)
        return [script] if self.place.complete else [self.python, script]

    def pytest(self, quick: bool) -> str:
        """The behaviour tests against the installed wheel, away from the source."""
        if not self.place.complete:
            return "not here: the core check stands in"
        if not shutil.which("cc"):
            return "not here: no C compiler for the guest's services"
        shutil.copytree(ROOT / "tests", self.folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        tests = TESTS[:1] if quick else TESTS
        words = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        lines = run(words, env=self.env, cwd=self.folder, timeout=1800, fine=(0, 1)).strip().splitlines()
        total = lines[-1].strip("= ").partition(" in ")[0]
        failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        if failed or " passed" not in total:
            raise Failed("; ".join([total, *failed]))
        return total

    def measure(self, pace: Pace) -> dict[str, Any]:
        """CPU seconds a GiB of each engine and way, and the ratios within each round."""
        script = shutil.copy(HERE / "throughput.py", self.folder)
        (self.folder / "wheels").mkdir(exist_ok=True)
        shutil.copy(HERE / "feeding.py", self.folder / "wheels")
        mebibytes = pace.emulated if self.place.emulated else pace.native
        words = [self.python, script, "--quiet", f"--python={self.python}", "--inherit-environ=PYTHONPATH"]
        rounds = []
        for number in range(pace.rounds):
            result = self.folder / f"round-{number}.json"
            order = ["--reverse"] if number % 2 else []
            self._measure_once([*words, *order, f"--mebibytes={mebibytes}", "-o", result])
            rounds.append(medians(result))
        return {way: compare(rounds, way) for way in ("up", "down")}

    def _measure_once(self, words: Sequence[str | Path]) -> None:
        if self.place.emulated:
            # qemu-user can hang in a child that was forked while a thread ended. pyperf then waits for its worker.
            with suppress(Failed):
                run(words, env=self.env, cwd=self.folder, timeout=300)
                return
        run(words, env=self.env, cwd=self.folder, timeout=900)

    def waits(self, pace: Pace) -> dict[str, Any]:
        """What a user waits for; nothing where the program is emulated."""
        if self.place.emulated:
            return {}
        return waits({name: self._words(name) for name in COMMANDS} | {"interpreter": [self.python]}, pace, self.env)


def _run_in(wheel: Path, target: Target, place: Place, quick: bool) -> dict[str, Any]:
    """What came of one wheel in one place. A step that fails keeps no other from being tried."""
    outcome: dict[str, Any] = {"place": place.name, "emulated": place.emulated, "core": "not run", "pytest": "not run"}
    with tempfile.TemporaryDirectory(prefix="room-", dir=cache()) as folder:
        try:
            room = Room(wheel, target, place, Path(folder))
            room.commands()
            outcome["core"] = text(room.core)
            room.add_tools()
            outcome["pytest"] = text(lambda: room.pytest(quick))
            outcome["ratios"] = room.measure(QUICK if quick else FULL)
            outcome["waits"] = room.waits(QUICK if quick else FULL)
        except Failed as error:
            outcome["failure"] = failed(error)
    return outcome


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
