"""Results as Markdown: one table of the peers and the main measures, and one of everything.

No figure stands without its ratio to the reference, paired within the rounds, with the spread from the 10th to the
90th percentile.
"""

from pathlib import Path
from typing import Any

import pyperf  # type: ignore[import-untyped,unused-ignore]

from .results import Results, Series, Spread, spread

SUMMARY = (  # of a measure, what is shown in the table of peers
    ("up", "rate", "host to guest"),
    ("up", "cpu-per-GiB", "CPU, host to guest"),
    ("down", "rate", "guest to host"),
    ("down", "cpu-per-GiB", "CPU, guest to host"),
    ("latency-64", "p50", "round trip of 64 B"),
    ("start", "time", "start to first byte"),
)
NAMES = {
    "rate": "throughput",
    "time": "time",
    "cpu-per-GiB": "CPU",
    "cpu-in-all": "CPU, start and end included",
    "memory": "peak memory",
    "p50": "median",
    "p99": "99th percentile",
}


def markdown(results: Results) -> str:
    """The whole report."""
    return "\n".join([machine(results), "", summary(results), "", "## All measures", "", details(results), ""])


def machine(results: Results) -> str:
    """On what the figures were found, in one paragraph."""
    about = results.about
    virtual = " (virtual)" if about.get("cpu_virtual") == "yes" else ""
    rounds = max(len(s.values) for m in results.measures for s in [results.first(m, results.peers(m)[0])])
    python = str(about.get("python_version", "?")).split()[0]
    lines = [
        f"On {about.get('cpu_usable', '?')} CPUs{virtual} of type {about.get('cpu_model_name', 'unknown')}, "
        f"Linux {about.get('kernel', '?')}, Python {python}; pipes of up to {about.get('pipe_max_size', '?')} B; "
        f"load average {about.get('load_avg_before', '?')} before and {about.get('load_avg_after', '?')} after. "
        f"Medians of up to {rounds} interleaved rounds. In brackets: the ratio to the peer in bold, paired within "
        "rounds, with its 10th to 90th percentile. CPU is seconds of the forwarder's processes for each GiB moved.",
    ]
    if "left_out" in about:
        lines += ["", f"Left out: {about['left_out']}."]
    return "\n".join(lines)


def summary(results: Results) -> str:
    """One row a peer, one column a main measure."""
    columns = [column for column in SUMMARY if column[0] in results.measures]
    peers = list(dict.fromkeys(peer for measure, _, _ in columns for peer in results.peers(measure)))
    titles = {peer: _title(results, peer) for peer in peers}
    rows = [
        [_bold(titles[peer], columns and peer == results.reference(columns[0][0]))]
        + [cell(results, measure, peer, quantity) for measure, quantity, _ in columns]
        for peer in peers
    ]
    return table(["peer", *(title for _, _, title in columns)], rows) if columns else "No main measure was taken."


def details(results: Results) -> str:
    """One row a measure and peer, one column a quantity."""
    quantities = ["rate", "cpu-per-GiB", "cpu-in-all", "memory", "p50", "p99", "time"]
    rows = []
    for measure in results.measures:
        for peer in results.peers(measure):
            series = results.first(measure, peer)
            start = series.about["measure_kind"] == "start"
            shown = [q for q in quantities if (q == "time") == start or q not in ("time", "rate")]
            found = [(NAMES[q], cell(results, measure, peer, q)) for q in shown]
            told = "; ".join(f"{name} {text}" for name, text in found if text != "-")
            rows.append(
                [series.about["measure_title"], _bold(series.about["peer_title"], _leads(results, series)), told]
            )
    return table(["work", "peer", "found"], rows)


def cell(results: Results, measure: str, peer: str, quantity: str) -> str:
    """A median and its ratio to the reference's; a dash where nothing was measured."""
    series = results.get(measure, peer, "time" if quantity == "rate" else quantity)
    if series is None:
        return "-"
    values = series.rate if quantity == "rate" else series.values
    text = figure(spread(values.values()).median, quantity)
    return text if _leads(results, series) else f"{text} ({_times(results.ratio(measure, peer, quantity))})"


def figure(value: float, quantity: str) -> str:
    """A value with its unit."""
    if quantity == "rate":
        return f"{value:.2f} GiB/s" if value >= 0.1 else f"{value * 1024:.2g} MiB/s"
    if quantity == "cpu-per-GiB":
        return f"{value:.2g} s/GiB" if value < 1 else f"{value:.2f} s/GiB"
    if quantity == "memory":
        return f"{value / 2**20:.1f} MiB"
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.0f} ns"


def _times(ratio: Spread | None) -> str:
    if ratio is None:
        return "no ratio: the reference has no value"
    return f"{ratio.median:.2g}x, {ratio.low:.2g} to {ratio.high:.2g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def split(path: str, folder: Path) -> None:
    """Write one results file a peer, whose benchmarks are named alike, so that pyperf compare_to pairs them."""
    folder.mkdir(parents=True, exist_ok=True)
    by_peer: dict[str, list[Any]] = {}
    for benchmark in pyperf.BenchmarkSuite.load(path).get_benchmarks():
        measure, peer, quantity = benchmark.get_name().split("/")
        benchmark.update_metadata({"name": f"{measure}/{quantity}"})
        by_peer.setdefault(peer, []).append(benchmark)
    for peer, benchmarks in by_peer.items():
        pyperf.BenchmarkSuite(benchmarks).dump(str(folder / f"{peer}.json"), replace=True)


def _title(results: Results, peer: str) -> str:
    measure = next(m for m in results.measures if peer in results.peers(m))
    return str(results.first(measure, peer).about["peer_title"])


def _bold(text: str, yes: object) -> str:
    return f"**{text}**" if yes else text


def _leads(results: Results, series: Series) -> bool:
    return series.peer == results.reference(series.measure)
