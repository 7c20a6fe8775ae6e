"""`python -m bench kubectl` runs kubectl by every way, and compares what arrives. No test here says how fast it is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from support import HANG, ROOT, kubectl
from support.guests import until
from support.ways import Exec, Floor

pytest.importorskip("pyperf")

from bench.kubectl import ALL, MEASURES, PEERS, Stage
from bench.measures import Measure
from bench.peers import Peer
from bench.results import Results
from bench.sample import PeerError


@pytest.fixture(autouse=True)
def program() -> Path:
    """The real kubectl."""
    return kubectl.program()


def small(name: str) -> Measure:
    """A measure by name, of 100 kB."""
    return replace(next(measure for measure in MEASURES if measure.name == name), size=100_000)


def test_kubectl_is_timed_by_every_way_beside_the_floor(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "kubectl", "--measures", "kubectl-exec", "--rounds", "1", "-o", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * HANG, check=False)
    assert done.returncode == 0, done.stderr
    results = Results.load(str(path))
    able = {peer.name for peer in PEERS if not peer.missing()}
    assert set(results.peers("kubectl-exec")) == able, done.stderr
    assert results.reference("kubectl-exec") == "floor"


@pytest.mark.parametrize("name", ["kubectl-cp-up", "kubectl-cp-down"])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_copy_arrives_by_every_way(tmp_path: Path, peer: Peer, name: str) -> None:
    if reason := peer.missing():
        pytest.skip(f"by design: {reason}" if "make binaries" in reason else reason)
    with Stage(tmp_path) as stage:
        sample = stage.take(small(name), peer, True)
        assert sample.seconds
        assert sample.seconds > 0
        serving = kubectl.processes_about(tmp_path)
        assert serving
        assert not any("emulate" in process for process in serving), "the emulator's speed would be measured"


class Liar(Floor):
    """A way that changes what it carries."""

    name = "liar"

    @contextmanager
    def ready(self, folder: Path) -> Iterator[Exec]:
        """With sed before the command."""
        with super().ready(folder) as honest:
            yield replace(honest, words=["sh", "-c", 'sed s/x/y/g | "$@"', "sh"])


def test_a_way_that_changes_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL, "liar", Liar())
    peer = replace(PEERS[0], name="liar")
    with Stage(tmp_path) as stage, pytest.raises(PeerError, match="changed the bytes"):
        stage.take(small("kubectl-cp-up"), peer, True)


def test_a_way_that_fails_is_an_error_with_what_kubectl_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Floor):
        @contextmanager
        def ready(self, folder: Path) -> Iterator[Exec]:
            yield Exec(folder, ["false"], dict(os.environ))

    monkeypatch.setitem(ALL, "broken", Broken())
    with Stage(tmp_path) as stage, pytest.raises(PeerError, match=r"(?s)ended with 1 .*exit code 1"):
        stage.take(small("kubectl-exec"), replace(PEERS[0], name="broken"), False)


def test_no_socat_listens_when_the_measuring_has_ended(tmp_path: Path) -> None:
    peer = next(peer for peer in PEERS if peer.name == "socats")
    if reason := peer.missing():
        pytest.skip(f"by design: {reason}" if "make binaries" in reason else reason)
    with Stage(tmp_path) as stage:
        stage.take(small("kubectl-exec"), peer, False)
    until(lambda: not kubectl.processes_about(tmp_path))
