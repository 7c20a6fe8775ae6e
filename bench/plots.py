"""Results as SVG pictures: throughput and CPU by peer, latency, throughput over chunk size.

matplotlib is imported here and nowhere else. Our own peers have the strong colour; the other bars are grey, the other
lines have a colour each. Bars end in their ratio to the reference, paired within rounds; whiskers reach
from the 10th to the 90th percentile.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .results import Results, Series, spread

OURS = {"splice": "#0b6e4f", "proxy": "#0b6e4f", "copy": "#6bbf9c"}
OTHERS = "#b6bcc4"
LINES = {
    "splice": "#0b6e4f",
    "copy": "#6bbf9c",
    "c-splice": "#222222",
    "c-copy": "#888888",
    "none": "#bbbbbb",
    "socat": "#d1495b",
    "pipeline": "#edae49",
    "threads": "#30638e",
}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "fastvsock",  # the same picture, the same bytes
    "figure.dpi": 110,
}


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """Write every picture for which there are results, and yield the paths."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    pyplot: Any = import_module("matplotlib.pyplot")
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        figure = picture(results, pyplot)
        if figure is None:
            continue
        figure.text(0.995, 0.005, _machine(results), ha="right", va="bottom", fontsize=7.5, color="#777777")
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        yield path
        pyplot.close(figure)


def _throughput(results: Results, pyplot: Any) -> Any:
    return _bars(results, pyplot, "rate", "GiB/s (longer is better)")


def _cpu(results: Results, pyplot: Any) -> Any:
    return _bars(results, pyplot, "cpu-per-GiB", "CPU seconds for each GiB (shorter is better)")


def _proxies(results: Results, pyplot: Any) -> Any:
    return _bars(results, pyplot, "rate", "GiB/s (longer is better)", "proxy-")


def _bars(results: Results, pyplot: Any, quantity: str, label: str, prefix: str = "") -> Any:
    """One panel a way, one bar a peer."""
    ways = [prefix + way for way in ("up", "down") if prefix + way in results.measures]
    if not ways:
        return None
    peers = [peer for peer in results.peers(ways[0]) if results.values(ways[0], peer, quantity)]
    height = 1.5 + 0.42 * len(peers)
    figure, panels = pyplot.subplots(
        1, len(ways), figsize=(11, height), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, measure in zip(panels[0], ways, strict=True):
        panel.set_title(results.first(measure, peers[0]).about["measure_title"])
        longest = 0.0
        for place, peer in enumerate(peers):
            values = results.values(measure, peer, quantity)
            if values:
                longest = max(
                    longest, _bar(panel, place, peer, [*values.values()], _ratio(results, measure, peer, quantity))
                )
        panel.set_xlim(0, longest * 1.32)
        panel.tick_params(axis="y", length=0)
    panels[0][0].set_yticks(range(len(peers)), [results.title(peer) for peer in peers])
    panels[0][0].invert_yaxis()
    panels[0][0].set_xlabel(label, loc="left")
    _leave_a_line(figure)
    return figure


def _bar(panel: Any, place: int, peer: str, values: Sequence[float], ratio: str) -> float:
    """Draw one bar with its whisker and its text; return how far it reaches."""
    found = spread(values)
    panel.barh(place, found.median, height=0.66, color=OURS.get(peer, OTHERS))
    panel.plot([found.low, found.high], [place, place], color="#333333", linewidth=1.1, solid_capstyle="butt")
    text = f" {found.median:.2g}  {ratio}"
    panel.text(max(found.high, found.median), place, text, va="center", fontsize=9.5, color="#333333")
    return max(found.high, found.median)


def _latency(results: Results, pyplot: Any) -> Any:
    """The share of round trips that took longer, over the time: the tail is where peers differ."""
    measure = next((m for m in ("latency-64", "latency-1") if m in results.measures), None)
    if measure is None:
        return None
    figure, panel = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for peer in results.peers(measure):
        series = results.get(measure, peer, "p50")
        if series is None or not series.quantiles:
            continue
        middle = [spread(of_all).median * 1e6 for of_all in zip(*series.quantiles, strict=True)][1:100]
        panel.plot(middle, range(1, 100), label=f"{results.title(peer)}: {_median(results, series)}", **_line(peer))
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xlabel("µs for a round trip, or less (further left is better)")
    panel.set_ylabel("% of round trips")
    panel.set_ylim(0, 100)
    panel.set_title(results.first(measure, results.peers(measure)[0]).about["measure_title"])
    panel.grid(axis="both", color="#eeeeee")
    _legend(panel, "median, ratio")
    _leave_a_line(figure)
    return figure


def _chunks(results: Results, pyplot: Any) -> Any:
    """Throughput over the size of the producer's writes."""
    measures = [m for m in results.measures if m.startswith("chunk-")]
    if len(measures) < 2:
        return None
    figure, panel = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for peer in results.peers(measures[-1]):
        there = [s for m in measures if (s := results.get(m, peer, "time")) is not None]
        sizes = [series.about["chunk"] for series in there]
        rates = [spread(series.rate.values()).median for series in there]
        ratio = _ratio(results, there[-1].measure, peer, "rate")
        panel.plot(sizes, rates, marker="o", markersize=4, label=f"{results.title(peer)} {ratio}", **_line(peer))
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(_size)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("bytes a write of the producer")
    panel.set_ylabel("GiB/s")
    panel.set_title("host to guest, over the size of the producer's writes")
    panel.grid(axis="y", color="#eeeeee")
    _legend(panel, "ratio at the largest")
    _leave_a_line(figure)
    return figure


PICTURES: dict[str, Callable[[Results, Any], Any]] = {
    "throughput": _throughput,
    "cpu": _cpu,
    "latency": _latency,
    "chunks": _chunks,
    "proxies": _proxies,
}


def _ratio(results: Results, measure: str, peer: str, quantity: str) -> str:
    ratio = results.ratio(measure, peer, quantity)
    return "" if ratio is None else f"({ratio.median:.2g}x)"


def _median(results: Results, series: Series) -> str:
    median = spread(series.values.values()).median * 1e6
    return f"{median:.3g} µs {_ratio(results, series.measure, series.peer, 'p50')}"


def _line(peer: str) -> dict[str, Any]:
    return {"color": LINES.get(peer, OTHERS), "linewidth": 2.4 if peer in OURS else 1.5, "zorder": 3 + (peer in OURS)}


def _size(value: float, _: object) -> str:
    return f"{value / 2**20:g} MiB" if value >= 2**20 else f"{value / 1024:g} KiB" if value >= 1024 else f"{value:g} B"


def _legend(panel: Any, title: str) -> None:
    legend = panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9.5, title=title)
    legend.set_alignment("left")


def _leave_a_line(figure: Any) -> None:
    """Room at the foot for the machine."""
    figure.get_layout_engine().set(rect=(0, 0.045, 1, 0.955))


def _machine(results: Results) -> str:
    about = results.about
    return (
        f"{about.get('cpu_usable', '?')} x {about.get('cpu_model_name', '?')}, Linux {about.get('kernel', '?')}; "
        "ratios paired within interleaved rounds; bars and lines: medians, whiskers: 10th to 90th percentile"
    )
