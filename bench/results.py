"""Reads results: values by measure, peer and round, and ratios paired within the rounds.

A ratio is never one median divided by another: it is the median of the ratios of single rounds, and its spread is from
their 10th to their 90th percentile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyperf  # type: ignore[import-untyped,unused-ignore]

REFERENCES = (
    "splice",
    "proxy",
    "copy",
    "proxy-socat",
    "exec-static",
    "cp-static",
    "floor",
)  # the first that took part is what the others are compared with


class ResultsError(Exception):
    """Results that cannot be shown as asked; the text is a sentence."""


@dataclass(frozen=True)
class Spread:
    """A median with the 10th and 90th percentile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """The values of one quantity, by round."""

    measure: str
    peer: str
    quantity: str
    values: dict[int, float]
    about: dict[str, Any] = field(repr=False)
    loads: list[float] = field(repr=False)  # load averages of the last minute, one for each round
    quantiles: list[list[float]] = field(default_factory=list, repr=False)

    @property
    def rate(self) -> dict[int, float]:
        """GiB/s by round, of a series of times."""
        return {number: self.about["bytes"] / 2**30 / value for number, value in self.values.items()}


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie, linear in between."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(values: Iterable[float]) -> Spread:
    """Median and 10th to 90th percentile."""
    found = list(values)
    return Spread(quantile(found, 0.5), quantile(found, 0.1), quantile(found, 0.9))


def paired(values: dict[int, float], base: dict[int, float]) -> list[float]:
    """The ratios of `values` to `base`, one for each round that both have."""
    return [values[number] / base[number] for number in sorted(values) if number in base]


class Results:
    """The content of results files, each with other measures. `about` has what is the same in each, or all of it."""

    def __init__(self, *suites: Any) -> None:
        found = [dict(suite.get_metadata()) for suite in suites]
        self.about: dict[str, Any] = {
            name: "; ".join(dict.fromkeys(str(about[name]) for about in found if name in about))
            for name in dict.fromkeys(name for about in found for name in about)
        }
        self._series = {
            (s.measure, s.peer, s.quantity): s for suite in suites for s in map(_series, suite.get_benchmarks())
        }

    @classmethod
    def load(cls, *paths: str) -> "Results":
        """Read files that `python -m bench` wrote."""
        return cls(*map(pyperf.BenchmarkSuite.load, paths))

    @cached_property
    def measures(self) -> list[str]:
        """Names, in the order in which they were measured."""
        return list(dict.fromkeys(measure for measure, _, _ in self._series))

    def peers(self, measure: str) -> list[str]:
        """The peers that took part in a measure."""
        return list(dict.fromkeys(peer for name, peer, _ in self._series if name == measure))

    def get(self, measure: str, peer: str, quantity: str) -> Series | None:
        """One series, or None."""
        return self._series.get((measure, peer, quantity))

    def values(self, measure: str, peer: str, quantity: str) -> dict[int, float]:
        """Values by round; none where the peer has none. `rate` is GiB/s, computed from the time."""
        series = self.get(measure, peer, "time" if quantity == "rate" else quantity)
        if series is None:
            return {}
        return series.rate if quantity == "rate" else series.values

    def title(self, peer: str, measures: Iterable[str] = ()) -> str:
        """The peer's title in these measures: another kind may have a peer of the same name. Without any: in all."""
        among = set(measures) or set(self.measures)
        return next(str(s.about["peer_title"]) for s in self._series.values() if s.peer == peer and s.measure in among)

    def first(self, measure: str, peer: str) -> Series:
        """The first series of this peer in this measure."""
        return next(s for key, s in self._series.items() if key[:2] == (measure, peer))

    def loads(self, measure: str) -> tuple[float, float]:
        """The lowest and the highest load average of the last minute during a measure."""
        found = [load for s in self._series.values() if s.measure == measure for load in s.loads]
        return min(found), max(found)

    def reference(self, measure: str) -> str:
        """The peer with which the others are compared."""
        there = self.peers(measure)
        return next((peer for peer in REFERENCES if peer in there), there[0])

    def ratio(self, measure: str, peer: str, quantity: str) -> Spread | None:
        """A peer's values divided by the reference's, paired within rounds."""
        mine, base = self.values(measure, peer, quantity), self.values(measure, self.reference(measure), quantity)
        ratios = paired(mine, base)
        return spread(ratios) if ratios else None


def _series(benchmark: Any) -> Series:
    runs = [(run.get_metadata(), run.values) for run in benchmark.get_runs()]
    about = dict(runs[0][0])
    return Series(
        about["measure"],
        about["peer"],
        about["name"].rpartition("/")[2],
        {metadata["round"]: float(values[0]) for metadata, values in runs},
        about,
        [float(metadata["load_avg_1min"]) for metadata, _ in runs],
        [[float(q) for q in metadata["quantiles"].split()] for metadata, _ in runs if "quantiles" in metadata],
    )
