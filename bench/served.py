"""Measurements with a server in the guest: a rig that starts one for each sample, and the stage that all share."""

import os
import select
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .build_c import program
from .measures import Measure
from .peers import Peer
from .process_tree import Tree
from .rig import Rig
from .sample import PeerError, Sample
from .ways import Way, keys_in

MEMORY = Path("/dev/shm")  # no disk is measured where it is there


class Stage:
    """Keys and folders for all samples, below `folder`; `take` has `of_peer` make a rig for each."""

    def __init__(self, folder: Path, of_peer: Callable[["Stage", Measure, Peer, bool], "ServedRig"]) -> None:
        self._of_peer = of_peer
        self.keys = folder / "keys"
        self.work = Path(tempfile.mkdtemp(prefix="fastvsock-bench-", dir=MEMORY if MEMORY.is_dir() else folder))
        self._stack = ExitStack()

    def __enter__(self) -> "Stage":
        self._stack.enter_context(keys_in(self.keys))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        subprocess.run(["rm", "-rf", self.work], check=True)

    def take(self, measure: Measure, peer: Peer, check: bool) -> Sample:
        """Measure once. Raises `PeerError`."""
        with self._of_peer(self, measure, peer, check) as rig:
            return rig.take()


class ServedRig(Rig, ABC):
    """A rig whose peer has a server in the guest, which is started for this sample, and counted with it."""

    def __init__(self, measure: Measure, peer: Peer, check: bool, way: type[Way], keys: Path) -> None:
        super().__init__(measure, peer, check)
        self._tree = Tree(apart=program("ends"))
        self._kind, self._keys = way, keys

    def __enter__(self) -> "ServedRig":
        super().__enter__()
        self.way = self._kind(Path(self.uds).parent, self._keys)
        self.begin()
        return self

    def begin(self) -> None:
        """Start the server."""
        self.way.serve(self._start_server)

    @abstractmethod
    def take(self) -> Sample:
        """Do the work of the measure. Raises `PeerError`."""

    def run(self, *pipeline: list[str]) -> Sample:
        """The time of commands in a pipeline, to the end of the last, and the CPU time of both ends."""
        before = self._tree.settle()
        begin, heads, stdin = time.monotonic(), [], subprocess.DEVNULL
        for command in pipeline[:-1]:
            reader, writer = self._pipe()
            heads.append(self._start_peer(command, stdin=stdin, stdout=writer))
            self._drop(stdin, writer)
            stdin = reader
        heads.append(self._start_peer(pipeline[-1], stdin=stdin, stdout=subprocess.DEVNULL))
        self._drop(stdin)
        for head in heads:
            self._await_end(head)
        seconds = time.monotonic() - begin
        cpu = self._tree.settle() - before
        for head, command in zip(heads, pipeline, strict=True):
            if head.wait():
                raise self._fault(f"{Path(command[0]).name} ended with {head.returncode}")
        return Sample(seconds, cpu_in_all=cpu)

    def _await_end(self, head: "subprocess.Popen[bytes]") -> None:
        """Wait until a process has ended, and leave it a zombie, whose CPU time can be read."""
        fd = self._keep(os.pidfd_open(head.pid))
        if not select.select([fd], [], [], self.timeout)[0]:
            raise PeerError(f"did not finish within {self.timeout:.0f} s")
        self._drop(fd)

    def _start_server(self, command: list[str], **options: Any) -> None:
        head = self._start_peer(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options)
        self._stack.callback(head.stdout.close)  # type: ignore[union-attr]
        self._line(head.stdout)
