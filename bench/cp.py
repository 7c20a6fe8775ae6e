"""What copying to the guest and from it takes: one large file, a tree of small ones, and the tree once more.

The time is from the copier's start to its end. Memory takes the place of the disk, where there is /dev/shm.
"""

import filecmp
import os
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path

from .copiers import ALL, Copier, Walk
from .measures import GIB, Measure
from .peers import Peer
from .sample import PeerError, Sample
from .served import ServedRig, Stage

BLOCK = 1 << 20


def _kind(copier: Copier) -> str:
    return "cp:" + "+".join(copier.does)


COPIERS = {copier.name: copier for copier in ALL}
PEERS = [Peer(c.name, c.title, _kind(c), list[str], c.missing, c.version) for c in ALL]


def _able(work: str) -> tuple[str, ...]:
    return tuple({_kind(copier) for copier in ALL if work in copier.does})


def _measures(ends: str, title: str, kind: str, size: int, rounds: tuple[int, int]) -> list[Measure]:
    base = Measure(f"cp-{ends}", title, kind, "", ends, size, rounds=rounds, actors=_able(ends))
    ways = {"up": "into the guest", "down": "from the guest"}
    return [
        replace(base, name=f"{base.name}-{way}", title=f"{title} {preposition}", way=way)
        for way, preposition in ways.items()
    ]


MEASURES = (
    *_measures("file", "a file", "bulk", GIB, (3, 0)),
    *_measures("tree", "Python's standard library", "whole", 0, (5, 1)),
    Measure(
        "cp-again",
        "Python's standard library into the guest, where all of it is already",
        "whole",
        "again",
        "tree",
        size=0,
        rounds=(7, 1),
        actors=_able("again"),
    ),
)


def stage(folder: Path) -> Stage:
    """The stage on which these measures are taken."""
    return Stage(folder, CopyRig)


class CopyRig(ServedRig):
    """One copy, to a folder of its own."""

    def __init__(self, stage: Stage, measure: Measure, peer: Peer, check: bool) -> None:
        self._copier = COPIERS[peer.name]
        super().__init__(measure, peer, check, self._copier.way, stage.keys)
        self.timeout = 120
        self._source = _source(stage.work, measure)
        self._target = Path(tempfile.mkdtemp(prefix="target-", dir=stage.work))

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        shutil.rmtree(self._target)

    def take(self) -> Sample:
        """Copy, and compare the first time."""
        first = self._copier.down if self.measure.way == "down" else self._copier.up
        sample = self.run(*first(self.way, self._source, self._target))
        if self.measure.way == "again":
            sample = self.run(*self._copier.again(self.way, self._source, self._target))
        if self.measure.kind == "bulk":
            sample.cpu = sample.cpu_in_all
        if (
            self.check
            and not isinstance(self._copier, Walk)
            and not _same(self._source, self._target / self._source.name)
        ):
            raise PeerError("changed the bytes on their way")
        return sample


def _source(folder: Path, measure: Measure) -> Path:
    """What is to be copied, made at its first use."""
    path = folder / (measure.ends if measure.ends == "tree" else f"file-{measure.size}")
    if not path.exists() and measure.ends == "tree":
        shutil.copytree(sysconfig.get_path("stdlib"), path, ignore=shutil.ignore_patterns("site-packages"))
    elif not path.exists():
        with path.open("wb") as file:
            for size in range(measure.size, 0, -BLOCK):
                file.write(os.urandom(min(size, BLOCK)))
    return path


def _same(one: Path, other: Path) -> bool:
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    return (
        subprocess.run(
            ["diff", "-rq", "--no-dereference", one, other], stdout=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )
