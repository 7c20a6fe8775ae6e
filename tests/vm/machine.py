"""Boot L1 in QEMU, run one command in it, and bring back its output and its exit status.

Theory of operation: QEMU emulates an AMD processor with SVM in software (no KVM needed here); in it L1 runs a real
Firecracker on a real /dev/kvm. Host and L1 meet in one folder, `out`: the host leaves `command.sh` there, L1 appends
the command's output to `output.log` and the phases that it reached to `phase`, and last writes the exit status to
`status` and powers off. The host follows these files while QEMU lives. L1's own console goes to `l1-console.log` and
Firecracker's to `firecracker.log`; they are shown only when something failed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BOOT_FAILED = 70
TIMED_OUT = 124
BOOT_SECONDS = 90
BOOT_TRIES = 3
POLL_SECONDS = 0.1
TAIL_LINES = 40

RESULTS = ("output.log", "phase", "status", "l1-console.log", "firecracker.log", "junit.xml", "junit-binary.xml")


class Follower:
    """Reads what is appended to a file that may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def read(self) -> bytes:
        """Return the bytes added since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                added = file.read()
        except FileNotFoundError:
            return b""
        self.offset += len(added)
        return added


def clear_run(out: Path) -> None:
    """Remove an earlier boot's results, so that none can be taken for this one's."""
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)


def write_command(out: Path, command: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Leave the shell command for L1, to run in a folder with more environment."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    (out / "command.sh").write_text("\n".join([*lines, f"cd {shlex.quote(str(folder))} || exit 71", command, ""]))


def qemu_command(images: Path, out: Path) -> list[str]:
    """Return QEMU's command line; `out` is the one folder of the host that L1 can write."""
    shares = {
        "host": "path=/,readonly=on,multidevs=remap",
        "images": f"path={escaped(images)},readonly=on",
        "out": f"path={escaped(out)}",
    }
    virtfs = [
        word
        for tag, options in shares.items()
        for word in ("-virtfs", f"local,{options},mount_tag={tag},security_model=none")
    ]
    return [
        *("setpriv", "--pdeathsig", "KILL", "--"),  # QEMU shall not outlive a killed run.py
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=1024"),
        *("-M", "q35", "-cpu", "max,+svm,+npt,-la57", "-m", "3072", "-smp", "2"),
        *("-kernel", str(images / "vmlinux1"), "-initrd", str(images / "initrd1")),
        *("-append", "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off init_on_alloc=0 nokaslr"),
        *virtfs,
        *("-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot"),
        *("-serial", f"file:{escaped(out / 'l1-console.log')}"),
    ]


def escaped(path: Path) -> str:
    """Quote a path for QEMU's option syntax."""
    return str(path).replace(",", ",,")


@contextmanager
def qemu(images: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run QEMU; it is gone when the block ends, however it ends."""
    process = subprocess.Popen(qemu_command(images, out), stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def boot_and_run(images: Path, out: Path, timeout: float) -> int:
    """Run out/command.sh in L1, its output live on stdout; returns its exit status, BOOT_FAILED or TIMED_OUT.

    A boot that hangs or panics (under emulation some do, rarely) is tried again; a command is run once.
    """
    deadline = time.monotonic() + timeout
    for _ in range(BOOT_TRIES):
        clear_run(out)
        if boot_once(images, out, deadline):
            return exit_status(out)
        show_consoles(out)
        if time.monotonic() > deadline:
            return TIMED_OUT
    return BOOT_FAILED


def boot_once(images: Path, out: Path, deadline: float) -> bool:
    """Boot, and follow the output until QEMU ends; false if the deadline or a boot that hung or panicked ended it."""
    output, phases = Follower(out / "output.log"), Follower(out / "phase")
    began = time.monotonic()
    guest_is_up, ended = False, False
    with qemu(images, out) as process:
        while not ended:
            ended = process.poll() is not None  # asked first, so that the last output is read after it
            for phase in phases.read().decode().split():
                report(f"{phase} is up", began)
                guest_is_up = phase == "l2"
            copy(output.read())
            if not ended and time.monotonic() > (deadline if guest_is_up else min(deadline, began + BOOT_SECONDS)):
                report("out of time: killed", began)
                return False
            time.sleep(POLL_SECONDS)
    report("L1 powered off", began)
    return guest_is_up or (out / "status").exists()


def exit_status(out: Path) -> int:
    """Return the status that L1 left; BOOT_FAILED, with the consoles shown, if its command never ran."""
    try:
        status = int((out / "status").read_text())
    except (FileNotFoundError, ValueError):
        status = BOOT_FAILED
    if not (out / "output.log").exists():
        show_consoles(out)
        return BOOT_FAILED
    return status


def copy(output: bytes) -> None:
    """Pass the command's output on."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


def show_consoles(out: Path) -> None:
    """Print the end of both consoles."""
    for name in ("l1-console.log", "firecracker.log"):
        if (out / name).exists():
            lines = (out / name).read_text(errors="replace").splitlines()[-TAIL_LINES:]
            print(f"--- the end of {name}", *lines, sep="\n", flush=True)


def report(phase: str, began: float) -> None:
    """Print how long a phase took, counted from `began` (time.monotonic)."""
    print(f"vm: {time.monotonic() - began:6.1f} s  {phase}", flush=True)


def passed_on(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what of the host's environment the tests in L1 see: what steers them, not where things are on the host."""
    prefixes = ("FASTVSOCK_", "PYTEST_", "PYTHON", "HYPOTHESIS_", "LANG", "LC_")
    own = {"FASTVSOCK_VM", "FASTVSOCK_VM_CACHE"}  # and FASTVSOCK_TEST_*, all but one set by L1
    return {
        name: value
        for name, value in environment.items()
        if name in {"CI", "FASTVSOCK_TEST_CONNECT"}
        or (name.startswith(prefixes) and name not in own and not name.startswith("FASTVSOCK_TEST_"))
    }
