"""A memory cgroup around a forwarder: what the kernel charges to a container for it, beyond resident memory.

Buffers of Unix sockets and pipes are charged to the cgroup of the process that fills them, and count towards a
container's limit, but stand in no process' RSS. Version 2 also charges TCP's buffers; version 1 does not unless a
limit is set for them (mm/memcontrol-v1.c). Charges come in batches of 64 pages a CPU, so small figures are coarse.
"""

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

USAGE = ("memory.current", "memory.usage_in_bytes")  # version 2, version 1


class MemoryGroup:
    """A cgroup below this process' own. Raises OSError where none can be made."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fastvsock-bench-", dir=_own_folder()))
        usage = [self._folder / name for name in USAGE if (self._folder / name).exists()]
        if not usage:
            self.remove()
            raise OSError("the memory controller is not enabled for new cgroups here")
        self._usage = usage[0]

    def add(self, pids: Iterable[int]) -> None:
        """Move processes into the group; what they hold already stays charged where it was."""
        for pid in pids:
            with suppress(ProcessLookupError):
                (self._folder / "cgroup.procs").write_text(str(pid))

    def charged(self) -> int:
        """Bytes that are charged to the group now."""
        return int(self._usage.read_text())

    def remove(self) -> None:
        """Remove the group; its processes must have ended."""
        self._folder.rmdir()


def _own_folder() -> Path:
    """The folder of this process' memory cgroup: cgroups(7), proc_pid_mountinfo(5)."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    version_1 = next((path for _, controllers, path in groups if "memory" in controllers.split(",")), None)
    version_2 = next((path for number, _, path in groups if number == "0"), "/")
    for words in mounts:
        kind, options = words[words.index("-") + 1], words[-1].split(",")
        if kind == "cgroup2" if version_1 is None else kind == "cgroup" and "memory" in options:
            root, point = Path(words[3]), Path(words[4])
            own = Path(version_2 if version_1 is None else version_1)
            inside = own.relative_to(root) if own.is_relative_to(root) else Path()
            return point / inside if (point / inside).is_dir() else point
    raise FileNotFoundError("no memory cgroup is mounted here")
