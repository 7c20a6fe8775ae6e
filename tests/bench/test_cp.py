"""The measures of copies: every copier brings what it says, and a copy that is not whole is found out."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("pyperf")
if not (shutil.which("cc") or shutil.which("gcc")):
    pytest.skip("the ends of the benchmarks are C programs", allow_module_level=True)

from bench import cp
from bench.copiers import Tar
from bench.cp import MEASURES, PEERS, stage
from bench.measures import Measure
from bench.peers import Peer
from bench.process_tree import adopt_orphans
from bench.sample import PeerError
from bench.served import Stage
from bench.ways import Way

WORK = [
    (measure, peer)
    for measure in (replace(measure, size=min(measure.size, 100_000)) for measure in MEASURES)
    for peer in PEERS
    if peer.kind in measure.kinds and peer.name not in ("cp-static", "cp-copy") and not peer.missing()
]


@pytest.fixture(name="on_stage", scope="module")
def a_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With a small tree in the place of the large one."""
    adopt_orphans()
    with stage(tmp_path_factory.mktemp("stage")) as found:
        folder = found.work / "tree" / "folder"
        folder.mkdir(parents=True)
        for number in range(20):
            (folder / f"file {number}").write_bytes(bytes(number))
        yield found


@pytest.mark.parametrize(("measure", "peer"), WORK, ids=lambda which: which.name)
def test_every_copier_brings_all_of_it(on_stage: Stage, measure: Measure, peer: Peer) -> None:
    """Each way, and a second time where there is nothing to do."""
    sample = on_stage.take(measure, peer, True)
    assert sample.seconds
    assert sample.seconds > 0


class Losing(Tar):
    """A copier that leaves out one file."""

    def up(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """With an option of tar's."""
        pack, unpack = super().up(way, source, target)
        return [[pack[0], "--exclude=file 7", *pack[1:]], unpack]


def test_a_copy_that_is_not_whole_is_found_out(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cp.COPIERS, "tar-raw", Losing())
    measure, peer = next(entry for entry in WORK if (entry[0].name, entry[1].name) == ("cp-tree-up", "tar-raw"))
    with pytest.raises(PeerError, match="changed the bytes"):
        on_stage.take(measure, peer, True)


def test_no_copy_is_left(on_stage: Stage) -> None:
    measure, peer = WORK[0]
    on_stage.take(measure, peer, False)
    assert not list(on_stage.work.glob("target-*"))
