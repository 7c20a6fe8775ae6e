"""`make wheels`: four abi3 wheels from one machine, the same to the last bit wherever and whenever they are built.

zig, which PyPI packs as `ziglang`, is the cross compiler: it brings headers and stubs for each glibc and for musl, so
nothing of the host's own C library gets in. The headers of one x86_64 CPython serve all four targets, as the Limited
API of 3.11 is the same on all.

What makes a wheel the same every time: tools pinned with hashes (build.txt); the oldest supported Python as the host,
so that no newer header adds anything; a fresh copy of the source, with modes set and nothing but what git has too; a
clean environment; stripped objects without debug information; and one constant for all time stamps. That is no
commit's time, because a shallow clone does not know which commit touched the source last, and an sdist knows none.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wheels import report
from wheels.common import (
    HERE,
    ROOT,
    Failed,
    Interpreter,
    cache,
    environment,
    interpreters,
    is_release,
    run,
    say,
    sha256,
    shipped,
    version,
    write_sums,
)

HOST = "3.11"  # the floor of the Limited API, and so the headers that serve
EPOCH = 1767225600  # 2026-01-01, the time stamp of every file in a wheel
CFLAGS = "-O3 -DNDEBUG -g0 -fwrapv -fno-strict-aliasing"  # CC from the environment drops Python's own: -O3 -DNDEBUG too
LDFLAGS = "-s -Wl,--as-needed"
TOP = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")  # README.md is in a wheel's METADATA


@dataclass(frozen=True)
class Target:
    """What one wheel is for."""

    machine: str
    libc: str  # "glibc" or "musl"
    tag: str  # the platform tag, without the machine
    triple: str  # zig's name, without the machine

    @property
    def platform(self) -> str:
        """The platform tag of the wheel's name."""
        return f"{self.tag}_{self.machine}"

    @property
    def zig(self) -> str:
        """The target as zig names it."""
        return f"{self.machine}-{self.triple}"


TARGETS = tuple(
    Target(machine, libc, tag, triple)
    for libc, tag, triple in (
        ("glibc", "manylinux_2_17", "linux-gnu.2.17"),
        ("musl", "musllinux_1_2", "linux-musl"),
    )
    for machine in ("x86_64", "aarch64")
)


def main(arguments: list[str]) -> int:
    """Build what the command line says; 1 if it fails, or if --check finds another wheel than the one shipped."""
    parser = argparse.ArgumentParser(prog="python -m wheels.build", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE, help="the folder for the wheels (default: wheels/)")
    parser.add_argument("--only", action="append", choices=[target.platform for target in TARGETS])
    parser.add_argument("--check", action="store_true", help="build, keep nothing, compare with the shipped SHA256SUMS")
    parser.add_argument("--sdist", action="store_true", help="build the source distribution instead")
    parser.add_argument("--tag", help="fail unless this is v and the version, and a release")
    options = parser.parse_args(arguments)
    targets = [target for target in TARGETS if not options.only or target.platform in options.only]
    try:
        if options.tag and options.tag != f"v{version()}":
            raise Failed(f"{options.tag} is not the tag of version {version()}")
        if options.tag and not is_release():
            raise Failed(f"{version()} is a development version: set a release version in src/fastvsock/__init__.py")
        if options.sdist:
            print(build_sdist(options.output))
        elif options.check:
            return check(targets)
        else:
            wheels = build(targets, options.output)
            for wheel in wheels:
                print(f"{sha256(wheel)}  {wheel.name}  {wheel.stat().st_size} bytes")
    except Failed as error:
        say(f"wheels: {error}")
        return 1
    return 0


def build(targets: list[Target], output: Path, work: Path | None = None) -> list[Path]:
    """Build the wheels of `targets` into `output`, with SHA256SUMS and BUILD.json; `work` is where, else the cache.

    Wheels that stand there already, of this version or of another, are replaced.
    """
    host = host_interpreter()
    tools = environment("build", host.executable)
    output.mkdir(parents=True, exist_ok=True)
    before = digest()
    wheels = []
    with tempfile.TemporaryDirectory(prefix="build-", dir=work or cache()) as folder:
        for target in targets:
            say(f"building {target.platform}")
            wheels.append(_build_one(target, tools, Path(folder) / target.platform))
        if digest() != before:
            raise Failed("the source changed while the wheels were built: once more")
        for old in output.glob("fastvsock-*.whl"):
            old.unlink()
        wheels = sorted(Path(shutil.move(wheel, output / wheel.name)) for wheel in wheels)
    write_sums(output)
    record = _record(host, tools, wheels)
    (output / "BUILD.json").write_text(json.dumps(record, indent=2) + "\n")
    return wheels


def build_sdist(output: Path) -> Path:
    """Build the source distribution into `output`, with the pinned tools."""
    tools = environment("build", host_interpreter().executable)
    with tempfile.TemporaryDirectory(prefix="sdist-", dir=cache()) as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        copy_source(source, (*sources(), *tests()))
        run([tools, "-m", "build", "--sdist", "--no-isolation", "--outdir", made, source], env=_environment(tools))
        output.mkdir(parents=True, exist_ok=True)
        (sdist,) = made.iterdir()
        return Path(shutil.move(sdist, output / sdist.name))


def check(targets: list[Target]) -> int:
    """Whether building again gives the wheels that are shipped and, of a release, were validated in full: 0 or 1."""
    known = shipped()
    if not known:
        raise Failed("no wheels are shipped yet: make wheels")
    with tempfile.TemporaryDirectory(prefix="check-", dir=cache()) as folder:
        built = {wheel.name: sha256(wheel) for wheel in build(targets, Path(folder))}
    different = [name for name, built_digest in built.items() if known.get(name) != built_digest]
    for name in built:
        print(f"{name}: {'NOT what is shipped' if name in different else 'the same as shipped'}")
    flaws = report.lacking(known) if is_release() else []
    for flaw in flaws:
        print(f"the record of the validation: {flaw}")
    return 1 if different or flaws else 0


def host_interpreter() -> Interpreter:
    """The Python whose headers the wheels are built with. Raises `Failed`."""
    for one in reversed(interpreters()):
        if one.version.startswith(f"{HOST}.") and one.headers and one.libc == "glibc" and one.machine == "x86_64":
            return one
    raise Failed(f"wheels are built with CPython {HOST} on x86_64 with its headers in one folder, and none is on PATH")


def sources() -> Iterator[Path]:
    """Every file that a wheel is made of, relative to the repository, sorted."""
    yield from (Path(name) for name in TOP if (ROOT / name).exists())
    for path in sorted(path for folder in ("fastvsock", "scripts") for path in (ROOT / "src" / folder).rglob("*")):
        left_out = path.suffix in (".so", ".pyc", ".orig", ".rej", ".md") or (
            path.suffix == ".c" and path.with_suffix(".pyx").exists()
        )
        if path.is_file() and not left_out:
            yield path.relative_to(ROOT)


def tests() -> Iterator[Path]:
    """Every file of the tests, relative to the repository, sorted: an sdist holds those that MANIFEST.in takes."""
    for path in sorted((ROOT / "tests").rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            yield path.relative_to(ROOT)


def digest() -> str:
    """One SHA-256 over all that decides what the wheels are: the sources, the pins, and the recipe's constants."""
    total = hashlib.sha256(repr((HOST, EPOCH, CFLAGS, LDFLAGS, TARGETS)).encode())
    for path in (*sources(), Path("wheels") / "build.txt"):
        total.update(f"{path.as_posix()} {sha256(ROOT / path)}\n".encode())
    return total.hexdigest()


def copy_source(folder: Path, paths: Iterable[Path]) -> None:
    """Copy files of the repository, and nothing else, with the modes and the times that the archive will have."""
    for path in paths:
        copy = folder / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy)
        copy.chmod(0o644)
        os.utime(copy, (EPOCH, EPOCH))


def _build_one(target: Target, tools: Path, folder: Path) -> Path:
    source, made = folder / "source", folder / "made"
    copy_source(source, sources())
    env = _environment(tools)
    env |= {
        "ZIG_GLOBAL_CACHE_DIR": str(cache() / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(folder / "zig"),
        "_PYTHON_HOST_PLATFORM": f"linux-{target.machine}",
        "DIST_EXTRA_CONFIG": str(folder / "dist.cfg"),
        "FASTVSOCK_REQUIRE_SPLICE": "1",
    }
    (folder / "dist.cfg").write_text(f"[bdist_wheel]\nplat_name={target.platform}\n")
    compiler = f"{shlex.quote(str(tools))} -m ziglang cc -target {target.zig}"
    linking = LDFLAGS
    if target.libc == "musl":
        linking += f" -nostdlib -Wl,--no-as-needed {shlex.quote(str(_musl_stub(target, compiler, folder, env)))}"
    env |= {"CC": compiler, "LDSHARED": f"{compiler} -shared", "CFLAGS": CFLAGS, "LDFLAGS": linking}
    run([tools, "-m", "build", "--wheel", "--no-isolation", "--outdir", made, source], env=env, timeout=600)
    (wheel,) = made.iterdir()
    return wheel


def _musl_stub(target: Target, compiler: str, folder: Path, env: dict[str, str]) -> Path:
    """An empty library with the name of Alpine's libc: what zig links by itself names a libc.so that is nowhere."""
    stub = folder / "stub.so"
    name = f"-Wl,-soname,libc.musl-{target.machine}.so.1"
    run([*shlex.split(compiler), "-shared", "-nostdlib", name, "-o", stub, "-x", "c", os.devnull], env=env)
    return stub


def _environment(tools: Path) -> dict[str, str]:
    """The environment of a build: nothing of the caller's but where programs and the home are."""
    return {
        "PATH": os.pathsep.join((str(tools.parent), os.environ.get("PATH", os.defpath))),
        "HOME": os.environ.get("HOME", os.sep),
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": str(EPOCH),
    }


def _record(host: Interpreter, tools: Path, wheels: list[Path]) -> dict[str, object]:
    """What BUILD.json tells: with what the wheels were made, and from which source."""
    listed = json.loads(run([tools, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]))
    zlib = run([tools, "-c", "import zlib; print(zlib.ZLIB_RUNTIME_VERSION)"]).strip()
    return {
        "version": version(),
        "source": digest(),
        "epoch": EPOCH,
        "host": {"python": host.version, "machine": host.machine, "zlib": zlib},
        "tools": {one["name"]: one["version"] for one in listed if one["name"] != "pip"},
        "wheels": {wheel.name: sha256(wheel) for wheel in wheels},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
