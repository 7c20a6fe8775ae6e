"""A kernel of a time before this package, to boot a program with nothing else under QEMU."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from images import file, folder, write_cpio

from support import HANG
from wheels import places
from wheels.common import Failed, cache

RELEASE, PACKAGE = "bullseye", "linux-image-5.10.0-32-cloud-amd64"  # 2020's; of the releases that mirrors still have
QEMU = (
    *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512", "-no-reboot", "-nic", "none"),
    *("-display", "none", "-monitor", "none", "-serial", "stdio"),
)


def old() -> Path:
    """The image of the kernel. Skips the test where this machine cannot get or boot it."""
    image = cache() / "kernels" / PACKAGE
    if not shutil.which(QEMU[0]):
        pytest.skip("by design: an old kernel is booted where the tests against Firecracker have installed QEMU")
    if not image.exists():
        image.parent.mkdir(exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=cache()) as work:
                unpacked = Path(work) / "package"
                places.Apt("amd64", RELEASE).unpack((PACKAGE,), unpacked)
                (found,) = unpacked.glob("boot/vmlinuz-*")
                found.rename(image)
        except Failed as error:
            pytest.skip(f"this machine: no {PACKAGE} from its mirrors: {str(error).splitlines()[0]}")
    return image


def boot(kernel: Path, work: Path, files: dict[str, bytes], *words: str) -> str:
    """What a machine prints whose first process is /init with the arguments `words`, until that ends.

    `files` are executables by their names in the root. No word may have a space in it.
    """
    initrd = work / "initrd"
    entries = [file(name, content, 0o755) for name, content in files.items()]
    write_cpio(initrd, [folder("dev"), folder("tmp", 0o1777), *entries])
    line = " ".join(("console=ttyS0 quiet panic=-1 rdinit=/init --", *words))
    command = [*QEMU, "-kernel", str(kernel), "-initrd", str(initrd), "-append", line]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * HANG, check=True)
    return done.stdout.decode(errors="replace")
