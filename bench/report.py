"""Results as Markdown: the page of all results, and the short table of the README. The same file gives the same text.

On the page no figure stands without its ratio to the reference, paired within the rounds; medians have the spread from
the 10th to the 90th percentile in brackets.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyperf  # type: ignore[import-untyped,unused-ignore]

from .measures import unit
from .results import Results, ResultsError, Spread, spread
from .targets import TARGETS

SHORT_COMMANDS, SHORT_FORWARDERS = ("exec-static", "openssh-shared", "dropbear"), ("splice", "threads", "pipeline")
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Column:
    """A column of a summary: one quantity in one measure, or in two that differ in their way."""

    title: str
    quantity: str
    measures: tuple[str, ...]


MAIN = (
    Column("throughput", "rate", ("up", "down")),
    Column("CPU time", "cpu-per-GiB", ("up", "down")),
    Column("round trip of 64 B", "p50", ("latency-64",)),
    Column("start to first byte", "time", ("start",)),
)
PROXIES = (
    Column("throughput", "rate", ("proxy-up", "proxy-down")),
    Column("CPU time", "cpu-per-GiB", ("proxy-up", "proxy-down")),
    Column("round trip of 64 B", "p50", ("proxy-latency-64",)),
    Column("connect to first byte", "time", ("proxy-start",)),
    Column("memory, 100 connections", "memory", ("proxy-relays-100",)),
    Column("charged, 20 stalled uploads", "charged", ("proxy-stalled-20",)),
)
COMMANDS = (
    Column("exec true", "time", ("exec-true",)),
    Column("throughput", "rate", ("exec-up", "exec-down")),
    Column("CPU time of both ends", "cpu-per-GiB", ("exec-up", "exec-down")),
    Column("keystroke and back", "p50", ("exec-key",)),
    Column("guest's side at rest", "at-rest", ("exec-memory",)),
    Column("host's side", "client", ("exec-memory",)),
)
COPIES = (
    Column("a file", "rate", ("cp-file-up", "cp-file-down")),
    Column("CPU time of both ends", "cpu-per-GiB", ("cp-file-up", "cp-file-down")),
    Column("Python's standard library", "time", ("cp-tree-up", "cp-tree-down")),
    Column("the same once more", "time", ("cp-again",)),
)
KUBECTL = (
    Column("kubectl cp", "time", ("kubectl-cp-up", "kubectl-cp-down")),
    Column("kubectl exec true", "time", ("kubectl-exec",)),
)
QUANTITIES = {  # of a measure, in the order of the columns
    "rate": "throughput",
    "time": "time",
    "cpu-per-GiB": "CPU time",
    "cpu-in-all": "CPU time, start and end included",
    "memory": "peak resident memory",
    "private": "private memory, written to",
    "faults": "page faults",
    "at-rest": "guest's side at rest (PSS)",
    "serving": "guest's side with one client (PSS)",
    "client": "host's side (PSS)",
    "resident": "resident memory, growth",
    "charged": "memory charged to the cgroup, growth",
    "p50": "median",
    "p99": "99th percentile",
}
MEBIBYTES = ("MiB", 2.0**-20)
UNITS = {  # of quantities that are not plain times: name and factor
    "rate": ("GiB/s", 1.0),
    "cpu-per-GiB": ("s/GiB", 1.0),
    "memory": MEBIBYTES,
    "private": MEBIBYTES,
    "faults": ("", 1.0),
    "at-rest": MEBIBYTES,
    "serving": MEBIBYTES,
    "client": MEBIBYTES,
    "resident": MEBIBYTES,
    "charged": MEBIBYTES,
}
TIMES = (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9))
METHOD = """\
- In each round every forwarder does the same work once; another one begins each round. Forwarders of one table differ
  by their code, not by the minute in which they ran.
- A figure is the median of the rounds, with the 10th to the 90th percentile in brackets. A ratio is the median of the
  ratios within single rounds to the forwarder in bold.
- CPU time is that of all processes of the forwarder while the bytes moved, in seconds for each GiB. Memory is the sum
  over its processes.
- Absolute figures belong to the machine; ratios and CPU time are the steady ones, throughput is noisy.
- [README.md](README.md) describes the measures and the forwarders."""


def page(results: Results, chart: str | None = None) -> str:
    """The page of all results; `chart` is the path of the chart, from the page."""
    parts = [
        "# Benchmark results",
        "Written by `python -m bench report`, not by hand.",
        f"![Seconds that a user of kubectl waits, by way into the guest]({chart})" if chart else "",
        _summary(results, "Forwarders", MAIN),
        _summary(results, "Proxies", PROXIES),
        _summary(results, "Commands in the guest", COMMANDS),
        _summary(results, "Copies", COPIES),
        _summary(results, "kubectl", KUBECTL),
        _targets(results),
        "## Method\n\n" + METHOD,
        "## Machine\n\n" + _machine(results),
        "## All measures",
        *(_details(results, measure) for measure in results.measures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def short_table(results: Results) -> str:
    """The README's tables: commands in the guest and forwarders, each beside what users have had, and the machine."""
    about = results.about
    tables = table_of(results, COMMANDS[:3], SHORT_COMMANDS), table_of(results, MAIN[:2], SHORT_FORWARDERS)
    kernel = str(about.get("kernel", "?")).partition("-")[0]
    machine = f"Medians on {about.get('cpu_usable', '?')} CPUs ({about.get('cpu_model_name', '?')}), Linux {kernel}."
    return "\n\n".join(part for part in (*tables, machine) if part)


def replace_table(readme: str, results: Results) -> str:
    """`readme` with the short table between its two markers. Raises `ResultsError` if a marker is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ResultsError(f"cannot place the table: add the lines {BEGIN} and {END} to the page")
    return f"{before}{BEGIN}\n{short_table(results)}\n{END}{after}"


def _targets(results: Results) -> str:
    """What was wanted, and what was measured."""
    rows = []
    for target in TARGETS:
        found = target.measured(results)
        if found is None:
            continue
        factor = UNITS[target.quantity][1] if not target.base else 1
        limit = f"at {'least' if target.at_least else 'most'} {_limit(target.limit * Fraction(factor))}"
        verdict = "yes" if target.reached(found) else f"**no**: {target.reason or 'not explained'}"
        median, low, high = (f"{value * factor:.3g}" for value in (found.median, found.low, found.high))
        rows.append([target.text, limit, f"{median} ({low} to {high})", verdict])
    text = "Each ratio is taken within rounds: the median, with the 10th to the 90th percentile in brackets."
    return f"## Targets\n\n{text}\n\n{_table(['what', 'target', 'measured', 'reached'], rows)}" if rows else ""


def _limit(value: Fraction) -> str:
    return f"1/{value.denominator}" if value.numerator == 1 and value.denominator > 1 else f"{float(value):g}"


def _summary(results: Results, title: str, columns: Sequence[Column]) -> str:
    measures = [m for column in columns for m in column.measures if m in results.measures]
    peers = list(dict.fromkeys(peer for measure in measures for peer in results.peers(measure)))
    text = table_of(results, columns, peers)
    return f"## {title}\n\n{text}" if text else ""


def table_of(results: Results, columns: Sequence[Column], peers: Iterable[str]) -> str:
    """One row for each peer, without spreads; of two ways both figures are in one cell. Empty without results."""
    columns = [column for column in columns if any(m in results.measures for m in column.measures)]
    measures = [m for column in columns for m in column.measures if m in results.measures]
    references = {results.reference(measure) for measure in measures}
    rows = []
    for peer in peers:
        cells = [_both(results, peer, column) for column in columns]
        if any(cell != "-" for cell in cells):
            rows.append([_bold(results.title(peer, measures), peer in references), *cells])
    if not rows:
        return ""
    both = next((c for c in columns if len(c.measures) == 2 and c.measures[0] in results.measures), None)
    head = "forwarder"
    if both:
        size = unit(results.first(both.measures[0], results.peers(both.measures[0])[0]).about["bytes"])
        head = f"{size} to / from the guest"
    return _table([head, *(column.title for column in columns)], rows)


def _both(results: Results, peer: str, column: Column) -> str:
    found = [results.values(measure, peer, column.quantity) for measure in column.measures]
    if not any(found):
        return "-"
    medians = [spread(values.values()).median if values else None for values in found]
    name, factor = _unit(min(median for median in medians if median is not None), column.quantity)
    return f"{' / '.join('-' if m is None else _rounded(m * factor) for m in medians)} {name}"


def _details(results: Results, measure: str) -> str:
    """One row for each peer, two columns for each quantity: the median and the ratio."""
    peers, reference = results.peers(measure), results.reference(measure)
    about = results.first(measure, peers[0]).about
    hidden = "time" if about["measure_kind"] == "bulk" else "rate"  # one is computed from the other
    shown = [q for q in QUANTITIES if q != hidden and any(results.values(measure, peer, q) for peer in peers)]
    rows = [
        [
            _bold(results.title(peer, [measure]), peer == reference),
            *(cell for q in shown for cell in _cells(results, measure, peer, q)),
        ]
        for peer in peers
    ]
    rounds = max(len(results.values(measure, peer, quantity)) for peer in peers for quantity in shown)
    head = ["forwarder", *(title for q in shown for title in (QUANTITIES[q], "ratio"))]
    low, high = results.loads(measure)
    conditions = f"Rounds: {rounds}. Load average of the last minute: {low:.1f} to {high:.1f}."
    return f"### {about['measure_title']} (`{measure}`)\n\n{conditions}\n\n{_table(head, rows)}"


def _cells(results: Results, measure: str, peer: str, quantity: str) -> tuple[str, str]:
    """A median with its spread, and its ratio to the reference's."""
    values = results.values(measure, peer, quantity)
    if not values:
        return "-", "-"
    ratio = results.ratio(measure, peer, quantity)
    if peer == results.reference(measure):
        return figure(spread(values.values()), quantity), "1"
    return figure(spread(values.values()), quantity), _with_spread(ratio, 1) if ratio else "-"


def figure(found: Spread, quantity: str) -> str:
    """A median with its unit and its spread."""
    name, factor = _unit(found.median, quantity)
    median, _, low_to_high = _with_spread(found, factor).partition(" ")
    return " ".join(part for part in (median, name, low_to_high) if part)


def _with_spread(found: Spread, factor: float) -> str:
    low, high = _rounded(found.low * factor), _rounded(found.high * factor)
    return f"{_rounded(found.median * factor)} ({low} to {high})"


def _unit(value: float, quantity: str) -> tuple[str, float]:
    """A unit's name and factor; for times, the largest unit that leaves at least 1."""
    if quantity in UNITS:
        return UNITS[quantity]
    return next(((name, factor) for name, factor in TIMES if value * factor >= 1), TIMES[-1])


def _rounded(value: float) -> str:
    """Two digits, or all of those before the point: what the spreads support."""
    return f"{value:.0f}" if value >= 10 else f"{value:#.2g}"


def _machine(results: Results) -> str:
    """The machine, the versions and the command, a line each."""
    about = results.about
    virtual = " (virtual)" if about.get("cpu_virtual") == "yes" else ""
    facts = {
        "CPUs": f"{about.get('cpu_usable', '?')} x {about.get('cpu_model_name', 'unknown')}{virtual}",
        "memory": about.get("memory_total"),
        "kernel": f"Linux {about.get('kernel', '?')}",
        "Python": about.get("python_version"),
        "compiler": about.get("version_compiler"),
        "user": about.get("user"),
        "load average before": about.get("load_avg_before"),
        "load average after": about.get("load_avg_after"),
        "fs.pipe-max-size": about.get("pipe_max_size"),
        "fs.pipe-user-pages-soft": about.get("pipe_user_pages_soft"),
        "net.core.wmem_default, wmem_max": f"{about.get('socket_wmem_default')}, {about.get('socket_wmem_max')}",
        "net.ipv4.tcp_wmem": about.get("tcp_wmem"),
        "net.ipv4.tcp_rmem": about.get("tcp_rmem"),
    }
    peers = dict.fromkeys(peer for measure in results.measures for peer in results.peers(measure))
    versions = dict.fromkeys(str(about[f"version_{peer}"]) for peer in peers if f"version_{peer}" in about)
    facts["versions"] = "; ".join(versions)
    commands = str(about.get("bench_command", "")).split("; ")
    facts["command"] = "; ".join(f"`{command}`" for command in commands if command)
    rows = [[name, str(fact)] for name, fact in facts.items() if fact]
    left_out = f"\n\nLeft out: {about['left_out']}." if "left_out" in about else ""
    return _table(["what", "value"], rows) + left_out


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)


def split(paths: Iterable[str], folder: Path) -> None:
    """Write a results file for each peer; their benchmarks have the same names, so that compare_to pairs them."""
    folder.mkdir(parents=True, exist_ok=True)
    by_peer: dict[str, list[Any]] = {}
    for benchmark in (found for path in paths for found in pyperf.BenchmarkSuite.load(path).get_benchmarks()):
        measure, peer, quantity = benchmark.get_name().split("/")
        benchmark.update_metadata({"name": f"{measure}/{quantity}"})
        by_peer.setdefault(peer, []).append(benchmark)
    for peer, benchmarks in by_peer.items():
        pyperf.BenchmarkSuite(benchmarks).dump(str(folder / f"{peer}.json"), replace=True)


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text
