"""The benchmarks move what they claim to move, and say so truly. No test here says how fast anything is."""

import importlib
import importlib.util
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fastvsock
from support import HANG, ROOT, Child, started

pytest.importorskip("pyperf")
if not (shutil.which("cc") or shutil.which("gcc")):
    pytest.skip("the ends of the benchmarks are C programs", allow_module_level=True)

from bench.ends import announced_port
from bench.measures import MEASURES
from bench.peers import PEERS, Peer, installation
from bench.process_tree import Tree
from bench.results import Results, paired, quantile, spread
from bench.sample import PeerError
from fastvsock.selfbench import sampling

STDIO = [peer.name for peer in PEERS if peer.kind == "stdio" and not peer.missing()]
# `fastvsock bench`, also where the umbrella command does not list it yet.
USERS = (
    "import sys; from fastvsock import cli; cli.COMMANDS.setdefault('bench', ''); sys.argv[0] = 'fastvsock'; cli.main()"
)


def bench(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def pyperf(*arguments: str) -> str:
    """What pyperf prints about a results file."""
    done = subprocess.run(
        [sys.executable, "-m", "pyperf", *arguments], capture_output=True, text=True, timeout=HANG, check=True
    )
    return done.stdout


def users_bench(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `fastvsock bench` to its end."""
    return subprocess.run(
        [sys.executable, "-c", USERS, "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        **options,
    )


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of everything that is quick, at the smallest size, with each peer that is there."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    names = "up,down,both,down-socketpair,up-file,start,proxy-up,proxy-start"
    done = bench("run", "--measures", names, "--rounds", "1", "--size", "1", "-o", str(path))
    assert done.returncode == 0, done.stderr
    return path


def test_every_peer_moves_the_right_bytes_every_way(results: Path) -> None:
    """Each peer passes a trial before it is measured: counts and checksums of both ends must agree."""
    found = Results.load(str(results))
    assert "lost" not in found.about.get("left_out", "")
    assert "changed" not in found.about.get("left_out", "")
    for measure in ("up", "down", "both", "down-socketpair"):
        assert set(STDIO) <= set(found.peers(measure)), found.about.get("left_out")
    assert set(STDIO) == set(found.peers("up-file"))


def test_every_proxy_that_is_there_moves_the_right_bytes(results: Path) -> None:
    """Whoever is missing is named instead."""
    found = Results.load(str(results))
    left_out = found.about.get("left_out", "")
    for peer in PEERS:
        if peer.kind == "proxy":
            assert peer.name in found.peers("proxy-up") or f"{peer.name}: " in left_out


def test_a_peer_that_changes_bytes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum is compared, not only the count."""
    script = (
        "import sys; sys.path.insert(0, 'bench/peers'); import threads\n"
        "def swapped(sock):\n"
        "    while data := sys.stdin.buffer.read1(32768): sock.sendall(data[::-1])\n"
        "threads.to_socket = swapped; threads.main()"
    )
    monkeypatch.chdir(ROOT)
    from bench.rig import take

    liar = Peer("liar", "a liar", "stdio", lambda uds, port: [sys.executable, "-c", script, uds, str(port)])
    with pytest.raises(PeerError, match="changed the bytes"):
        take(small("up"), liar, check=True)


def small(name: str) -> Any:
    """A measure by name, of 1 MiB."""
    from dataclasses import replace

    return replace(next(m for m in MEASURES if m.name == name), size=1 << 20)


def test_a_peer_that_fails_is_told_with_its_own_last_word() -> None:
    """Its stderr is not lost."""
    from bench.rig import take

    broken = Peer("broken", "broken", "stdio", lambda uds, port: ["sh", "-c", f"nc-is-not-there {uds}"])
    slow = small("start")
    with pytest.raises(PeerError, match=r"brought no first byte; its last line on stderr: .*nc-is-not-there"):
        take(slow, broken)


def test_cpu_time_of_children_and_of_orphans_is_counted() -> None:
    """A shell that waits for one busy child, and leaves another one behind."""
    busy = f"{sys.executable} -S -c 'sum(range(4000000))'"
    script = f"""
from bench.process_tree import Tree, adopt_orphans
adopt_orphans()
for script in ("{busy}; true", "({busy} & ) ; sleep 0.01", "{busy} & wait"):
    tree = Tree()
    tree.start(["sh", "-c", script])
    print(tree.end(grace=30))
"""
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=True
    )
    alone = [float(line) for line in told.stdout.split()]
    assert len(alone) == 3
    assert min(alone) > 0.5 * max(alone) > 0


def test_a_running_tree_tells_its_cpu_time_and_memory() -> None:
    """Both are read while the processes live."""
    tree = Tree()
    tree.start([sys.executable, "-S", "-c", "sum(range(2000000)); import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert tree.settle(HANG) > 0
        assert tree.memory() > 1 << 20
    finally:
        before = tree.cpu()
        for head in tree.heads:
            assert head.stdin
            head.stdin.close()
        assert tree.end(grace=HANG) >= before * 0.9
    assert not tree.killed


def test_pyperf_reads_the_results(results: Path, tmp_path: Path) -> None:
    """show, stats and compare_to, over two peers' files."""
    assert "up/c-splice/cpu-per-GiB" in pyperf("show", "--quiet", str(results))
    assert "up/c-copy/time" in pyperf("stats", "--quiet", str(results))
    assert bench("report", str(results), "--by-peer", str(tmp_path)).returncode == 0
    compared = pyperf("compare_to", str(tmp_path / "c-copy.json"), str(tmp_path / "copy.json"), "--table")
    assert "up/cpu-per-GiB" in compared


def test_results_tell_the_machine_and_the_versions(results: Path) -> None:
    """And nothing that names the person."""
    about = Results.load(str(results)).about
    assert {"kernel", "cpu_count", "python_version", "pipe_max_size", "unix_socket_sndbuf", "version_copy"} <= set(
        about
    )
    assert {"load_avg_before", "load_avg_after"} <= set(about)
    assert "hostname" not in about
    names = "up,down,both,down-socketpair,up-file,start,proxy-up,proxy-start"
    assert about["bench_command"] == f"python -m bench run --measures {names} --rounds 1 --size 1 -o FILE"
    up = Results.load(str(results)).get("up", "c-copy", "time")
    assert up
    assert {"round", "place", "date", "load_avg_1min", "bytes", "chunk"} <= set(up.about)


def test_the_installation_is_a_copy_that_starts_apart_from_the_environment_of_development() -> None:
    script = Path(installation() / "bin" / "runcvm-vsock-connect")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stdout == f"runcvm-vsock-connect {fastvsock.__version__}\n"
    code = "import fastvsock, sys; print(fastvsock.__file__, *sys.path, sep='\\n')"
    words: list[str | Path] = [script.with_name("python"), "-I", "-c", code]
    module, *path = subprocess.run(words, capture_output=True, text=True, timeout=HANG, check=True).stdout.split()
    assert Path(module).is_relative_to(installation())
    assert str(ROOT / "src") not in path


def test_peers_take_turns_within_a_round(tmp_path: Path) -> None:
    """And another one begins each round."""
    path = tmp_path / "results.json"
    peers = "c-copy,c-splice,none"
    done = bench("run", "--peers", peers, "--measures", "down", "--rounds", "3", "--size", "1", "-o", str(path))
    assert done.returncode == 0, done.stderr
    suite = importlib.import_module("pyperf").BenchmarkSuite.load(str(path))
    times = [benchmark for benchmark in suite.get_benchmarks() if benchmark.get_name().endswith("/time")]
    told = sorted((run.get_metadata() for benchmark in times for run in benchmark.get_runs()), key=lambda m: m["date"])
    order = [metadata["peer"] for metadata in told]
    assert order == ["c-copy", "c-splice", "none", "c-splice", "none", "c-copy", "none", "c-copy", "c-splice"]
    assert [metadata["round"] for metadata in told] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_ratios_are_paired_within_rounds() -> None:
    """A machine that gets ten times slower in the middle leaves them as they are."""
    ours = {0: 1.0, 1: 10.0, 2: 100.0, 4: 7.0}
    theirs = {0: 2.0, 1: 20.0, 2: 200.0, 3: 1.0}
    assert paired(theirs, ours) == [2.0, 2.0, 2.0]
    assert spread(paired(ours, theirs)).median == 0.5
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.1) == 1.0
    assert quantile([5.0], 0.9) == 5.0


def test_a_missing_peer_is_named_and_skipped(tmp_path: Path) -> None:
    """Nothing but the compiler and the interpreter is on the PATH."""
    path = tmp_path / "results.json"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cc", "gcc", "sh"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    chosen = ("--peers", "socat,none", "--measures", "up", "--rounds", "1", "--size", "1")
    done = bench("run", *chosen, "-o", str(path), env={"PATH": str(programs)})
    assert done.returncode == 0, done.stderr
    assert "socat is left out: socat is not installed" in done.stderr
    assert "socat: socat is not installed" in bench("report", str(path)).stdout


def test_an_unknown_peer_or_measure_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    """In one sentence."""
    for option, word in (("--peers", "c-splice"), ("--measures", "--help")):
        done = bench("run", option, "nonsense", "-o", str(tmp_path / "x.json"))
        assert done.returncode == 1
        assert "nonsense" in done.stderr
        assert word in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_proxys_announcement_is_understood() -> None:
    """Whatever words are around the address."""
    assert announced_port("listening on 127.0.0.1:4711\n") == 4711
    assert announced_port("127.0.0.1:80 -> /run/v.sock:22 is 1\n") == 80
    assert announced_port("/run/v.sock:22 on 127.0.0.1:81\n") == 81
    with pytest.raises(PeerError, match="announce"):
        announced_port("hello\n")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="pictures take matplotlib")
def test_pictures_are_drawn(results: Path, tmp_path: Path) -> None:
    """One SVG for each."""
    assert bench("report", str(results), "--plots", str(tmp_path)).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"throughput.svg", "cpu.svg", "proxies.svg"}


def test_pictures_without_matplotlib_are_an_error_that_says_so(results: Path, tmp_path: Path) -> None:
    """A module of that name that fails stands for one that is not there."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no', name='matplotlib')")
    done = bench("report", str(results), "--plots", str(tmp_path / "p"), env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "matplotlib is not installed" in done.stderr


@pytest.mark.skipif("splice" not in STDIO, reason="splice was not built")
def test_the_users_bench_compares_the_engines_both_ways() -> None:
    """Throughput, CPU time and a ratio each way; nothing on stderr where that is no terminal."""
    done = users_bench("--seconds", "0.4", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for line in (r"^up +splice +[\d.]+ +[\d.]+$", r"^down +copy +[\d.]+ +[\d.]+$"):
        assert re.search(line, done.stdout, re.M), done.stdout
    assert len(re.findall(r"splice: [\d.]+ times \([\d.]+ to [\d.]+\) the throughput of copy", done.stdout)) == 2


@pytest.mark.skipif("splice" not in STDIO, reason="splice was not built")
def test_the_users_bench_goes_through_a_guests_ports() -> None:
    """Through a UDS that somebody else serves: here the far end of a second one."""
    script = """
import sys
from fastvsock.selfbench import sampling
with sampling.far_end() as uds:
    print(uds, flush=True)
    sys.stdin.read()
"""
    with started([sys.executable, "-c", script]) as child:
        uds = child.stdout.readline().decode().strip()
        done = users_bench("--uds", uds, "--seconds", "0.4", "--rounds", "1")
        assert done.returncode == 0, done.stderr
        assert uds in done.stdout
        assert ", 1 round\n" in done.stdout
        only = users_bench("--uds", uds, "--port", "19", "--seconds", "0.2", "--rounds", "1")
        assert "down  splice" in only.stdout
        assert "up    splice" not in only.stdout
        wrong = users_bench("--uds", uds, "--port", "9", "--way", "down", "--seconds", "0.2", "--rounds", "1")
        assert wrong.returncode == 1
        assert "choose a port whose service never stops writing (chargen, port 19)" in wrong.stderr
        assert wrong.stderr.count("\n") == 1
        wrong = users_bench("--uds", uds, "--port", "19", "--way", "up", "--seconds", "0.2", "--rounds", "1")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "answered while it was written to: choose a port whose service reads whatever comes" in wrong.stderr
        child.stdin.close()
        assert child.wait(HANG) == 0


@pytest.mark.skipif("splice" not in STDIO, reason="splice was not built")
def test_the_users_bench_needs_no_dev_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "devnull", "/missing/null")
    with sampling.far_end() as uds:
        assert sampling.take(uds, sampling.DISCARD, "up", "splice", 0.2).moved > 0


def test_the_users_bench_tells_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    """No socket, a port without a socket, splice that was not built."""
    missing = users_bench("--uds", str(tmp_path / "none"))
    assert missing.returncode == 1
    assert "no such socket" in missing.stderr
    assert "--wait" not in missing.stderr, "an option that it does not have"
    assert users_bench("--port", "9").returncode == 2
    assert users_bench("--seconds", "0").returncode == 2


def measuring(child: Child, folder: Path) -> None:
    """Wait until a `fastvsock bench` has its far end and its processes."""
    deadline = time.monotonic() + HANG
    while not (list(folder.glob("*/v.sock")) and Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif("splice" not in STDIO, reason="splice was not built")
@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_users_bench_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    """As `kill` and `timeout` send it, or a terminal that goes: no folder, no process, no traceback."""
    command = [sys.executable, "-c", USERS, "bench", "--seconds", "60"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with started(command, env=environment, start_new_session=True) as child:
        measuring(child, tmp_path)
        time.sleep(0.2)
        if whole_group:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
        assert child.wait(HANG) == 128 + number
        assert (child.stdout.read(), child.stderr.read()) == (b"", b"")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


@pytest.mark.skipif("splice" not in STDIO, reason="splice was not built")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_does_not_end_the_users_bench(tmp_path: Path, number: signal.Signals) -> None:
    """As under nohup, or in the background of a script."""
    command = [sys.executable, "-c", USERS, "bench", "--seconds", "2", "--rounds", "1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ignoring = partial(signal.signal, number, signal.SIG_IGN)
    with started(command, env=environment, start_new_session=True, preexec_fn=ignoring) as child:
        measuring(child, tmp_path)
        os.killpg(child.pid, number)
        assert child.wait(HANG) == 0
        assert b", 1 round\n" in child.stdout.read()


@pytest.mark.skipif("splice" not in STDIO, reason="splice was not built")
def test_ctrl_c_ends_the_users_bench_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """On a terminal, as a person would: the whole process group hears it. The bar was there before."""
    main, side = pty.openpty()
    command = [sys.executable, "-c", USERS, "bench", "--seconds", "60"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with started(command, stderr=side, env=environment, start_new_session=True) as child:
        os.close(side)
        seen = b""
        while b"[" not in seen:
            seen += os.read(main, 1000)
        time.sleep(0.3)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(HANG) == 128 + signal.SIGINT
        assert child.stdout.read() == b""
    os.close(main)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
