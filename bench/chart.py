"""The README's chart: how long a user of kubectl waits, by each way into a guest, and with no guest at all.

It is written as SVG text, not drawn by matplotlib: a few kilobytes, the same bytes for the same results everywhere, and
text that stays text. The background is white, since a page in a dark theme shows the picture as it is.
"""

from xml.sax.saxutils import escape

from .results import Results, ResultsError, spread

PEERS = ("channels", "dropbear", "socats", "floor")
PANELS = (
    ("kubectl-exec", "kubectl exec true"),
    ("kubectl-cp-up", "kubectl cp, 100 MiB in"),
    ("kubectl-cp-down", "kubectl cp, 100 MiB out"),
)
COLOURS = {"channels": "#0b6e4f", "dropbear": "#6bbf9c"}
OTHERS = "#b6bcc4"
WIDTH, LABELS, LONGEST = 860, 290, 120  # pixels: all, the peers' titles, the longest bar
TOP, ROW, BAR = 78, 30, 18  # pixels: above the first bar, from bar to bar, a bar's height
FONT = "system-ui, Segoe UI, Helvetica, Arial, sans-serif"
DARK, LIGHT = "#24292f", "#57606a"


def draw(results: Results) -> str:
    """The chart as SVG; a peer that was not measured has no bar. Raises `ResultsError` if there are no bars."""
    medians = {
        (measure, peer): spread(values.values()).median
        for measure, _ in PANELS
        for peer in PEERS
        if (values := results.values(measure, peer, "time"))
    }
    if not medians:
        raise ResultsError("cannot draw the chart: `kubectl-exec` and the copies by kubectl were not measured")
    peers = [peer for peer in PEERS if any(peer == there for _, there in medians)]
    height = TOP + ROW * len(peers) + 30
    title = "Seconds that a user of kubectl waits (shorter is better)"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{title}" font-family="{FONT}">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        _text(16, 28, title, size=15, bold=True),
    ]
    for row, peer in enumerate(peers):
        lines.append(
            _text(
                LABELS - 10,
                _base(row),
                results.title(peer, [measure for measure, _ in PANELS]),
                bold=peer in COLOURS,
                anchor="end",
            )
        )
    for column, (measure, name) in enumerate(PANELS):
        left = LABELS + column * (WIDTH - LABELS) // len(PANELS)
        lines.append(_text(left, TOP - 18, name, colour=LIGHT))
        longest = max((value for (name, _), value in medians.items() if name == measure), default=0)
        for row, peer in enumerate(peers):
            if (measure, peer) in medians:
                lines += _bar(left, row, peer, medians[measure, peer], LONGEST / longest)
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
    """Machine and rounds in one line."""
    about = results.about
    rounds = [
        len(results.first(measure, results.peers(measure)[0]).values)
        for measure, _ in PANELS
        if measure in results.measures
    ]
    return (
        f"{about.get('cpu_usable', '?')} x {about.get('cpu_model_name', '?')}, Linux {about.get('kernel', '?')}; "
        f"medians of at least {min(rounds)} interleaved rounds; the guest is the same machine"
    )
