"""The law of the house: peers are measured in turn, never one after the other.

In each round of a measure every peer does the same work once; the next round begins with the next peer. A machine that
gets slower, or a neighbour who wakes up, so hits all of them alike, and a ratio is taken only between two values of the
same round. pyperf's Runner measures one benchmark to its end before the next, so the values are collected here, and
handed to pyperf as the runs of real benchmarks: one run a round, with round and place in its metadata.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyperf  # type: ignore[import-untyped,unused-ignore]

from .machine import describe
from .measures import GIB, Measure
from .peers import Peer
from .process_tree import adopt_orphans
from .rig import PeerError, Sample, take

TRIAL = 1 << 22  # bytes; what a peer must move unharmed before it is measured
UNITS = {"time": "second", "cpu-per-GiB": "second", "cpu-in-all": "second", "memory": "byte"}


@dataclass(frozen=True)
class Value:
    """One measured value: of what, by whom, when."""

    measure: Measure
    peer: Peer
    quantity: str
    value: float
    metadata: dict[str, Any]


class Rounds:
    """Goes round the peers. `values` grows; `left_out` says who did not take part in what, and why."""

    def __init__(self, measures: Sequence[tuple[Measure, int]], peers: Sequence[Peer]) -> None:
        self.measures = measures
        self.values: list[Value] = []
        self.left_out: dict[str, str] = {peer.name: why for peer in peers if (why := peer.missing())}
        self.peers = [peer for peer in peers if peer.name not in self.left_out]
        self._metadata = describe(self.peers)
        adopt_orphans()

    def run(self, tell: Callable[[str], object], seconds: float = float("inf")) -> None:
        """Do all measures; `tell` hears what is being done. After so many `seconds` none is begun any more."""
        began = time.monotonic()
        for measure, rounds in self.measures:
            if time.monotonic() - began > seconds:
                self.left_out[measure.name] = "the time was up"
                continue
            able = [peer for peer in self.peers if peer.kind in measure.kinds]
            tell(f"{measure.name}: trial of {len(able)} peers")
            able = [peer for peer in able if self._try(measure, peer)]
            for number in range(rounds):
                tell(f"{measure.name}: round {number + 1} of {rounds}, {len(able)} peers")
                self._go_round(measure, number, able)

    def suite(self) -> Any:
        """What was measured, as a `pyperf.BenchmarkSuite`. Raises `PeerError` where that is nothing."""
        if not self.values:
            raise PeerError("nothing was measured: " + ("; ".join(self._reasons()) or "no peer can do it"))
        common = self._metadata | {"load_avg_after": " ".join(f"{load:.2f}" for load in os.getloadavg())}
        if self.left_out:
            common["left_out"] = "; ".join(self._reasons())
        runs: dict[str, list[Any]] = {}
        for value in self.values:
            name = f"{value.measure.name}/{value.peer.name}/{value.quantity}"
            metadata = common | value.metadata | {"name": name, "unit": UNITS.get(value.quantity, "second")}
            runs.setdefault(name, []).append(pyperf.Run([value.value], metadata=metadata, collect_metadata=False))
        return pyperf.BenchmarkSuite([pyperf.Benchmark(of_one) for of_one in runs.values()])

    def _reasons(self) -> list[str]:
        return [f"{name}: {why}" for name, why in self.left_out.items()]

    def _try(self, measure: Measure, peer: Peer) -> bool:
        """Whether the peer moves bytes unharmed; it also is the warm-up."""
        if measure.kind == "bulk":
            measure = replace(measure, size=min(measure.size, max(TRIAL, measure.relays << 16)))
        return self._take(measure, peer, check=True) is not None

    def _take(self, measure: Measure, peer: Peer, check: bool = False) -> Sample | None:
        try:
            return take(measure, peer, check=check)
        except (PeerError, OSError) as error:
            self.left_out[f"{peer.name} in {measure.name}"] = " ".join(str(error).split())
            return None

    def _go_round(self, measure: Measure, number: int, able: list[Peer]) -> None:
        turn = number % max(len(able), 1)
        for place, peer in enumerate(able[turn:] + able[:turn]):
            began = time.monotonic()
            sample = self._take(measure, peer)
            if sample is None:
                able.remove(peer)
                continue
            metadata = _about(measure, peer) | {
                "round": number,
                "place": place,
                "date": datetime.now(UTC).isoformat(timespec="microseconds"),
                "duration": time.monotonic() - began,
                "load_avg_1min": os.getloadavg()[0],
                "killed": str(sample.killed),
            }
            if sample.quantiles:
                metadata["quantiles"] = " ".join(f"{q:.9f}" for q in sample.quantiles)
            for quantity, value in _quantities(measure, sample):
                self.values.append(Value(measure, peer, quantity, value, metadata))


def _about(measure: Measure, peer: Peer) -> dict[str, Any]:
    return {
        "measure": measure.name,
        "measure_title": measure.told,
        "measure_kind": measure.kind,
        "way": measure.way,
        "ends": measure.ends,
        "bytes": measure.moved,
        "chunk": measure.chunk,
        "relays": measure.relays,
        "peer": peer.name,
        "peer_title": peer.title,
        "peer_kind": peer.kind,
    }


def _quantities(measure: Measure, sample: Sample) -> Iterator[tuple[str, float]]:
    """What one sample tells, by name; pyperf takes no zeros, and nothing that costs nothing is zero here."""
    if sample.quantiles:
        yield "p50", sample.quantiles[50]
        yield "p99", sample.quantiles[99]
        return
    found = {
        "time": sample.seconds,
        "cpu-per-GiB": sample.cpu and sample.cpu * GIB / measure.moved,
        "cpu-in-all": sample.cpu_in_all,
        "memory": sample.memory,
    }
    yield from ((name, value) for name, value in found.items() if value and value > 0)


def progress(text: str) -> None:
    """One line on stderr; on a terminal, always the same one."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)
