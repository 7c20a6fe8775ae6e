"""The README's chart: CPU seconds for each GiB, our engines above what users have had so far.

It is written as SVG text, not drawn by matplotlib: a few kilobytes, the same bytes for the same results everywhere, and
text that stays text. The background is white, since a page in a dark theme shows the picture as it is.
"""

from xml.sax.saxutils import escape

from .measures import unit
from .results import Results, ResultsError, spread

PEERS = ("splice", "copy", "threads", "pipeline")
PANELS = (("up", "host to guest"), ("down", "guest to host"))
COLOURS = {"splice": "#0b6e4f", "copy": "#6bbf9c"}
OTHERS = "#b6bcc4"
WIDTH, LABELS, LONGEST = 780, 236, 190  # pixels: all, the peers' titles, the longest bar
TOP, ROW, BAR = 78, 30, 18  # pixels: above the first bar, from bar to bar, a bar's height
FONT = "system-ui, Segoe UI, Helvetica, Arial, sans-serif"
DARK, LIGHT = "#24292f", "#57606a"


def draw(results: Results) -> str:
    """The chart as SVG; a peer that was not measured has no bar. Raises `ResultsError` if there are no bars."""
    medians = {
        (measure, peer): spread(values.values()).median
        for measure, _ in PANELS
        for peer in PEERS
        if (values := results.values(measure, peer, "cpu-per-GiB"))
    }
    if not medians:
        raise ResultsError(f"cannot draw the chart: none of {', '.join(PEERS)} was measured in `up` or `down`")
    peers = [peer for peer in PEERS if any(peer == there for _, there in medians)]
    height = TOP + ROW * len(peers) + 30
    title = "CPU seconds for each GiB (shorter is better)"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{title}" font-family="{FONT}">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        _text(16, 28, title, size=15, bold=True),
    ]
    for row, peer in enumerate(peers):
        lines.append(_text(LABELS - 10, _base(row), results.title(peer), bold=peer in COLOURS, anchor="end"))
    for column, (measure, name) in enumerate(PANELS):
        left = LABELS + column * (WIDTH - LABELS) // len(PANELS)
        lines.append(_text(left, TOP - 18, name, colour=LIGHT))
        for row, peer in enumerate(peers):
            if (measure, peer) in medians:
                lines += _bar(left, row, peer, medians[measure, peer], LONGEST / max(medians.values()))
    lines += [_text(16, height - 12, _origin(results), size=11, colour=LIGHT), "</svg>", ""]
    return "\n".join(lines)


def _bar(left: int, row: int, peer: str, value: float, scale: float) -> list[str]:
    width = max(value * scale, 1)
    colour = COLOURS.get(peer, OTHERS)
    number = f"{value:#.2g}" if value < 10 else f"{value:.0f}"
    return [
        f'<rect x="{left}" y="{TOP + ROW * row}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
        _text(round(left + width + 6), _base(row), number, bold=peer in COLOURS),
    ]


def _text(
    x: int, y: int, text: str, *, size: int = 13, colour: str = DARK, bold: bool = False, anchor: str = "start"
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{weight} text-anchor="{anchor}">{escape(text)}</text>'
    )


def _base(row: int) -> int:
    """The base line of text beside the bar of a row."""
    return TOP + ROW * row + BAR - 4


def _origin(results: Results) -> str:
    """Machine, rounds and size in one line."""
    about = results.about
    measure = next(measure for measure, _ in PANELS if measure in results.measures)
    series = results.first(measure, results.peers(measure)[0])
    return (
        f"{about.get('cpu_usable', '?')} x {about.get('cpu_model_name', '?')}, Linux {about.get('kernel', '?')}; "
        f"{unit(series.about['bytes'])} through pipes; interleaved rounds: {len(series.values)}, medians shown"
    )
