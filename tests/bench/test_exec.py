"""The measures of commands in the guest: each way carries what it claims to, and both ends are counted."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support import HANG, ROOT

pytest.importorskip("pyperf")
if not (shutil.which("cc") or shutil.which("gcc")):
    pytest.skip("the ends of the benchmarks are C programs", allow_module_level=True)

from bench import exec as commands
from bench.exec import MEASURES, PEERS, stage
from bench.measures import Measure
from bench.peers import Peer
from bench.process_tree import Tree, adopt_orphans
from bench.results import Results
from bench.sample import PeerError
from bench.served import Stage
from bench.ways import Channels, Raw

HERE = [peer for peer in PEERS if not peer.missing() and peer.name not in ("exec-static", "exec-static-agent")]
WITH_TERMINALS = [peer for peer in HERE if peer.kind == "exec"]
CHANNELS, RAW = (next(peer for peer in PEERS if peer.name == name) for name in ("exec", "raw"))


@pytest.fixture(name="on_stage", scope="module")
def a_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One for all tests of this file: keys take their time."""
    adopt_orphans()
    with stage(tmp_path_factory.mktemp("stage")) as found:
        yield found


def small(name: str) -> Measure:
    """A measure by name, of 1 MiB."""
    return replace(next(measure for measure in MEASURES if measure.name == name), size=1 << 20)


@pytest.mark.parametrize("name", ["exec-up", "exec-down"])
@pytest.mark.parametrize("peer", HERE, ids=lambda peer: peer.name)
def test_a_stream_arrives_by_every_way_and_takes_time_at_both_ends(on_stage: Stage, peer: Peer, name: str) -> None:
    sample = on_stage.take(small(name), peer, True)
    assert sample.seconds
    assert sample.seconds > 0
    assert sample.cpu is not None


@pytest.mark.parametrize("peer", WITH_TERMINALS, ids=lambda peer: peer.name)
def test_a_keystroke_comes_back_by_every_way_with_a_terminal(on_stage: Stage, peer: Peer) -> None:
    keys = next(measure for measure in MEASURES if measure.name == "exec-key")
    assert len(on_stage.take(keys, peer, True).quantiles) == 101


def test_a_way_that_changes_bytes_is_found_out(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar(Raw):
        def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
            return ["sh", "-c", 'tr "\\0" "\\1" | "$@"', "sh", *super().command(*words, stdin=stdin, tty=tty)]

    monkeypatch.setitem(commands.NAMES, "raw", Liar)
    with pytest.raises(PeerError, match="changed the bytes"):
        on_stage.take(small("exec-up"), RAW, True)


def test_a_way_that_fails_is_an_error_with_its_last_word(on_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Channels):
        def command(self, *words: str, stdin: bool = False, tty: bool = False) -> list[str]:
            return super().command("no-such-command", stdin=stdin, tty=tty)

    monkeypatch.setitem(commands.NAMES, "exec", Broken)
    with pytest.raises(PeerError, match=r"fastvsock ended with 127; its last line on stderr: .*no-such-command"):
        on_stage.take(small("exec-true"), CHANNELS, True)


def test_memory_is_counted_on_both_sides(on_stage: Stage) -> None:
    """A Python at rest is a MiB at least, and the client another one."""
    memory = next(measure for measure in MEASURES if measure.name == "exec-memory")
    sample = on_stage.take(memory, CHANNELS, True)
    for found in (sample.at_rest, sample.serving, sample.client):
        assert found is not None
        assert found > 1 << 20


@pytest.mark.parametrize("peer", [CHANNELS, RAW], ids=lambda peer: peer.name)
def test_nothing_is_left_when_a_sample_has_been_taken(on_stage: Stage, peer: Peer) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    on_stage.take(small("exec-down"), peer, False)
    assert children.read_text() == before


def test_a_server_with_a_session_of_its_own_is_counted_and_ended() -> None:
    """As dropbear's is."""
    tree = Tree()
    tree.start(["sh", "-c", "setsid sleep 1000 & setsid sh -c 'while :; do :; done' & wait"])
    try:
        assert tree.settle(0.3) > 0.05
        assert len(tree.pids()) == 3
    finally:
        strangers = [pid for pid in tree.pids() if pid != tree.heads[0].pid]
        tree.end(grace=0)
    assert not [pid for pid in strangers if Path(f"/proc/{pid}").exists()]


def test_a_program_that_stands_apart_is_not_counted() -> None:
    """An end of the benchmarks that the peer's server has started."""
    shell = str(Path(shutil.which("sh") or "").resolve())
    tree = Tree(apart=shell)
    tree.start(["sh", "-c", "while :; do :; done"])
    try:
        assert tree.settle(0.2) == 0
    finally:
        tree.end(grace=0)


def test_exec_is_timed_by_each_way_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    peers = [peer.name for peer in HERE if peer.name in ("exec", "raw", "dropbear")]
    chosen = ["--peers", ",".join(peers), "--measures", "exec-true", "--rounds", "1"]
    command = [sys.executable, "-m", "bench", "exec", *chosen, "-o", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    assert set(Results.load(str(path)).peers("exec-true")) == set(peers), done.stderr
