"""Interleaves the peers round by round, so that drift of the machine affects all of them alike.

In each round of a measure every peer does the same work once; the next round begins with the next peer. A ratio is
taken only between two values of the same round. pyperf's Runner measures one benchmark to its end before the next, so
the values are collected here and given to pyperf as the runs of its benchmarks: one run a round, with the round and
the place in it as metadata.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyperf  # type: ignore[import-untyped,unused-ignore]

from .machine import describe, load_average
from .measures import GIB, Measure
from .peers import Peer
from .process_tree import adopt_orphans
from .rig import take
from .sample import PeerError, Sample

TRIAL = 1 << 22  # bytes that a peer must move unchanged before it is measured
BYTES = ("memory", "private", "resident", "charged", "at-rest", "serving", "client")
UNITS = dict.fromkeys(BYTES, "byte") | {"faults": "integer"}  # of quantities in pyperf; the others are seconds


@dataclass(frozen=True)
class Value:
    """One measured value of a peer."""

    measure: Measure
    peer: Peer
    quantity: str
    value: float
    metadata: dict[str, Any]


class Rounds:
    """Measures the peers in turn. `values` grows; `left_out` has the reason for each peer or measure left out.

    `take` measures one peer once, as `rig.take` does.
    """

    def __init__(
        self,
        measures: Sequence[tuple[Measure, int]],
        peers: Sequence[Peer],
        take: Callable[[Measure, Peer, bool], Sample] = take,
    ) -> None:
        self.measures = measures
        self._take_one = take
        self.values: list[Value] = []
        self.left_out: dict[str, str] = {peer.name: why for peer in peers if (why := peer.missing())}
        self.peers = [peer for peer in peers if peer.name not in self.left_out]
        self._metadata = describe(self.peers)
        adopt_orphans()

    def run(self, report: Callable[[str], object], seconds: float = float("inf")) -> None:
        """Take all measures, and begin none after `seconds`. `report` is called with each step."""
        began = time.monotonic()
        for measure, rounds in self.measures:
            if time.monotonic() - began > seconds:
                self.left_out[measure.name] = "the time limit was reached"
                continue
            able = [peer for peer in self.peers if peer.kind in measure.kinds]
            report(f"{measure.name}: trial of {len(able)} peers")
            able = [peer for peer in able if self._try(measure, peer)]
            for number in range(rounds):
                report(f"{measure.name}: round {number + 1} of {rounds}, {len(able)} peers")
                self._go_round(measure, number, able)

    def suite(self, command: str) -> Any:
        """The values as a `pyperf.BenchmarkSuite`, measured by `command`. Raises `PeerError` if there are none."""
        if not self.values:
            raise PeerError(
                "nothing was measured: " + ("; ".join(self._reasons()) or "no peer is able to do this work")
            )
        common = self._metadata | {"load_avg_after": load_average(), "bench_command": command}
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
        """Whether the peer moves bytes unchanged; the trial is the warm-up too."""
        if measure.kind in ("bulk", "whole"):
            measure = replace(measure, size=min(measure.size, max(TRIAL, measure.relays << 16)))
        return self._take(measure, peer, check=True) is not None

    def _take(self, measure: Measure, peer: Peer, check: bool = False) -> Sample | None:
        try:
            return self._take_one(measure, peer, check)
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
            for quantity, value in _quantities(measure, sample):
                quantiles = {"quantiles": " ".join(f"{q:.3g}" for q in sample.quantiles)} if quantity == "p50" else {}
                self.values.append(Value(measure, peer, quantity, value, metadata | quantiles))


def _about(measure: Measure, peer: Peer) -> dict[str, Any]:
    return {
        "measure": measure.name,
        "measure_title": measure.full_title,
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
    """The quantities of one sample, by name. pyperf refuses zeros: such a quantity is left out."""
    if sample.quantiles:
        yield "p50", sample.quantiles[50]
        yield "p99", sample.quantiles[99]
        return
    found = {
        "time": sample.seconds,
        "cpu-per-GiB": sample.cpu and sample.cpu * GIB / measure.moved,
        "cpu-in-all": sample.cpu_in_all,
        "memory": sample.memory,
        "private": sample.private,
        "faults": sample.faults,
        "at-rest": sample.at_rest,
        "serving": sample.serving,
        "client": sample.client,
        "resident": sample.resident,
        "charged": sample.charged,
    }
    yield from ((name, value) for name, value in found.items() if value and value > 0)
