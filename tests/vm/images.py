"""Build what L1 and the guest (L2) boot from: kernels, initrds, the agent and the ssh key.

Theory of operation: the cache has two stages, each a folder named by a hash of what it is made from: `parts-KEY` (what
fetch.py brings) and `images-KEY` (what is built from that, from the files beside this one and from guest_agent.c).
`kubectl-KEY`, which no VM needs, is beside them. A folder appears by rename, only when complete, and a lock file keeps
a second run waiting meanwhile. Both initrds are uncompressed cpio archives: unpacking costs more under emulation than
reading. The kernels are taken out of their bzImages for the same reason.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fetch

HERE = Path(__file__).resolve().parent
AGENT_SOURCE = HERE.parent / "support" / "guest_agent.c"
SOURCES = [HERE / name for name in ("images.py", "l1-init.sh", "l1-main.sh", "l2-init.sh", "boot.sh")]
PARTS_SOURCES = [HERE / "fetch.py"]

PASSWD = b"root:x:0:0:root:/home:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"

KINDS = ("unfinished", "parts", "images", "kubectl")
KEEP_SECONDS = 14 * 24 * 3600

Entry = tuple[str, int, bytes]  # path without a leading slash, st_mode, content (a symlink's: its target)


def cache_folder() -> Path:
    """Return the folder for everything that is built, outside the repository."""
    if given := os.environ.get("FASTVSOCK_VM_CACHE"):
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "fastvsock-vm"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; raises BlockingIOError if `wait` is false and another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def parts() -> Path:
    """Return the folder with everything fetched."""
    return cached("parts", PARTS_SOURCES, "", fetch.fetch_all)


def images(parts_folder: Path) -> Path:
    """Return the folder with everything to boot from."""
    return cached(
        "images",
        [*SOURCES, AGENT_SOURCE],
        parts_folder.name,
        lambda target: build(parts_folder, target),
    )


def kubectl() -> Path:
    """Return kubectl. Raises fetch.CannotRun if it is not available."""
    name = "kubectl"
    return cached(name, [], fetch.KUBECTL_SHA256, lambda folder: fetch.fetch_kubectl(folder / name)) / name


def cached(kind: str, sources: list[Path], more: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's folder of this kind for these inputs, and make it first if it isn't there."""
    digest = hashlib.sha256(more.encode())
    for source in sources:
        digest.update(source.read_bytes())
    cache = cache_folder()
    folder = cache / f"{kind}-{digest.hexdigest()[:16]}"
    with locked(cache / "lock"):
        if not folder.exists():
            prune(cache)
            unfinished = Path(tempfile.mkdtemp(dir=cache, prefix="unfinished-"))
            make(unfinished)
            unfinished.rename(folder)
        os.utime(folder)
    return folder


def prune(cache: Path) -> None:
    """Remove what a run left unfinished (the lock is held: no other is at work) and what was not used for long."""
    for folder in (folder for kind in KINDS for folder in cache.glob(f"{kind}-*")):
        unused = time.time() - folder.stat().st_mtime > KEEP_SECONDS
        if folder.name.startswith("unfinished-") or unused:
            shutil.rmtree(folder, ignore_errors=True)


def build(parts_folder: Path, target: Path) -> None:
    """Build all images into the folder `target`."""
    agent = target / "agent"
    fetch.run("gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", agent, AGENT_SOURCE)
    for level in "12":
        bz_image = parts_folder / f"l{level}" / "bzImage"
        (target / f"vmlinux{level}").write_bytes(vmlinux(bz_image.read_bytes()))
    make_keys(target)
    busybox = (parts_folder / "busybox").read_bytes()
    write_cpio(target / "initrd1", l1_entries(parts_folder, busybox))
    write_cpio(target / "initrd2", l2_entries(parts_folder, busybox, target))
    shutil.copy2(parts_folder / "firecracker", target)
    for name in ("l1-main.sh", "boot.sh"):
        shutil.copy2(HERE / name, target)


def vmlinux(bz_image: bytes) -> bytes:
    """Return the ELF file that a bzImage carries compressed (Documentation/arch/x86/boot.rst has the offsets)."""
    setup_size = (bz_image[0x1F1] + 1) * 512
    offset, size = (int.from_bytes(bz_image[at : at + 4], "little") for at in (0x248, 0x24C))
    payload = bz_image[setup_size + offset : setup_size + offset + size]
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)  # the decompressor object ignores what follows
    if payload.startswith(b"\x02\x21\x4c\x18"):
        # The kernel appends the unpacked size, four bytes: lz4 takes them for a block and complains at the end.
        with tempfile.TemporaryFile() as file:
            file.write(payload[:-4])
            file.seek(0)
            return subprocess.run(["lz4", "-dc"], stdin=file, capture_output=True, check=True).stdout
    raise fetch.Failed(f"unknown compression of the kernel: {payload[:6].hex()}")


def make_keys(target: Path) -> None:
    """Make the guest's host key, and the key pair that opens root's account there, in dropbear's format."""
    for name in ("key", "hostkey"):
        answer = fetch.run("dropbearkey", "-t", "ed25519", "-f", target / name)
        if name == "key":
            found = re.search(r"^ssh-ed25519 \S+", answer, re.MULTILINE)
            assert found, answer
            (target / "key.pub").write_text(found[0] + " test\n")


def l1_entries(parts_folder: Path, busybox: bytes) -> list[Entry]:
    """Return L1's initrd: busybox, modules, and mount points."""
    folders = ["bin", "modules", "proc", "sys", "dev", "host", "upper", "new"]
    return [
        *(folder(path) for path in folders),
        file("bin/busybox", busybox, 0o755),
        file("init", (HERE / "l1-init.sh").read_bytes(), 0o755),
        *modules(parts_folder / "l1"),
    ]


def l2_entries(parts_folder: Path, busybox: bytes, target: Path) -> list[Entry]:
    """Return the guest's initrd: busybox, dropbear and socat with their libraries, the agent, modules, accounts."""
    folders = ["bin", "usr", "usr/bin", "usr/sbin", "modules", "proc", "sys", "dev", "etc", "tmp", "var", "var/run"]
    programs = [Path(path) for tool in ("dropbear", "socat") if (path := fetch.which(tool))]
    entries = [
        *(folder(path) for path in folders),
        folder("home", 0o700),
        folder("home/.ssh", 0o700),
        file("home/.ssh/authorized_keys", (target / "key.pub").read_bytes(), 0o600),
        file("etc/hostkey", (target / "hostkey").read_bytes(), 0o600),
        file("etc/passwd", PASSWD),
        file("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o600),
        file("etc/group", b"root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n"),
        file("etc/shells", b"/bin/sh\n"),
        file("init", (HERE / "l2-init.sh").read_bytes(), 0o755),
        file("bin/busybox", busybox, 0o755),
        file("bin/agent", (target / "agent").read_bytes(), 0o755),
        *(file(f"usr/bin/{program.name}", program.read_bytes(), 0o755) for program in programs),
        *modules(parts_folder / "l2"),
    ]
    return entries + libraries(programs)


def libraries(programs: list[Path]) -> list[Entry]:
    """Return the shared libraries of these programs, at the paths where the dynamic linker looks for them."""
    answer = fetch.run("ldd", *programs)
    if "not found" in answer:
        raise fetch.Failed(f"a library is missing:\n{answer}")
    paths = sorted(set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", answer, re.MULTILINE)))
    parents = {str(parent) for path in paths for parent in Path(path[1:]).parents if parent.name}
    return [
        *(folder(parent) for parent in sorted(parents)),
        *(file(path[1:], Path(path).read_bytes(), 0o755) for path in paths),
    ]


def modules(kernel: Path) -> list[Entry]:
    """Return a kernel's modules under names that sort in the order of loading."""
    return [file(f"modules/{path.name}", path.read_bytes()) for path in sorted(kernel.glob("*.ko"))]


def folder(path: str, mode: int = 0o755) -> Entry:
    """Return an entry for a folder."""
    return path, stat.S_IFDIR | mode, b""


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    """Return an entry for a regular file."""
    return path, stat.S_IFREG | mode, content


def write_cpio(target: Path, entries: list[Entry]) -> None:
    """Write an initrd in the "newc" format, all owned by root (Documentation/driver-api/early-userspace)."""
    console = ("dev/console", stat.S_IFCHR | 0o600, b"")
    with target.open("wb") as out:
        for number, (path, mode, content) in enumerate([*entries, console, ("TRAILER!!!", 0, b"")], start=1):
            device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
            name = path.encode() + b"\0"
            fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
            header = b"070701" + b"".join(b"%08X" % field for field in fields)
            for block in (header + name, content):
                out.write(block + b"\0" * (-len(block) % 4))
