"""What `python -m bench report` writes: the page of results, its chart, and the table of the README."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from support import HANG

pytest.importorskip("pyperf")

from bench.chart import PANELS, draw
from bench.chart import PEERS as WAYS
from bench.report import BEGIN, END, figure, page, replace_table, short_table
from bench.results import Results, ResultsError, Spread
from bench.targets import TARGETS

BENCH = Path(__file__).parents[2] / "bench"
RECORDED = sorted(map(str, BENCH.glob("results/*.json.gz")))


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m bench report` on the recorded results."""
    return subprocess.run(
        [sys.executable, "-m", "bench", "report", *RECORDED, *map(str, arguments)],
        cwd=BENCH.parent,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


@pytest.fixture(scope="module")
def recorded() -> Results:
    """The results of which the published page was made."""
    return Results.load(*RECORDED)


def test_the_published_page_and_chart_are_what_the_recorded_results_give(tmp_path: Path) -> None:
    """Nobody has edited them, and the program that writes them has not changed since."""
    done = report("--markdown", tmp_path / "RESULTS.md", "--chart", tmp_path / "RESULTS.svg")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("RESULTS.md", "RESULTS.svg"):
        assert (tmp_path / name).read_text() == (BENCH / name).read_text(), (
            f"{name}: bench/README.md says how to write it"
        )


def test_every_measure_and_every_forwarder_of_a_run_is_on_the_page(recorded: Results) -> None:
    """Each measure has a section, and a row for each peer in it."""
    sections = re.split(r"^### ", page(recorded), flags=re.M)[1:]
    assert len(sections) == len(recorded.measures)
    for measure, section in zip(recorded.measures, sections, strict=True):
        assert f"(`{measure}`)" in section
        for peer in recorded.peers(measure):
            title = recorded.title(peer, [measure])
            assert section.count(f"| {title} |") + section.count(f"| **{title}** |") == 1


def test_on_the_page_a_ratio_stands_beside_each_figure(recorded: Results) -> None:
    """A cell with a unit is followed by a ratio with its spread, or by the reference's 1."""
    _, _, measures = page(recorded).partition("## All measures")
    rows = [line for line in measures.splitlines() if line.startswith("| ") and re.search(r"\d (GiB/s|s/GiB)", line)]
    assert rows
    for row in rows:
        cells = row.strip("| ").split(" | ")
        for figure_cell, ratio in zip(cells[1::2], cells[2::2], strict=True):
            if figure_cell != "-":
                assert re.fullmatch(r"1|[\d.]+ \([\d.]+ to [\d.]+\)", ratio), row
                assert (ratio == "1") == cells[0].startswith("**"), row


def test_the_page_names_machine_load_versions_and_command(recorded: Results) -> None:
    """Without them no figure can be judged."""
    text = page(recorded)
    for name in ("kernel", "Python", "compiler", "load average before", "load average after", "versions", "command"):
        assert re.search(rf"^\| {name} \| .*\d", text, re.M) or f"| {name} | `python -m bench run" in text, name
    assert len(re.findall(r"^Rounds: \d+\. Load average", text, re.M)) == len(recorded.measures)


def test_the_chart_has_our_way_above_what_users_have_had(recorded: Results) -> None:
    """A name for each way from top to bottom, and three bars for each: exec, and a copy each way."""
    root = ElementTree.fromstring(draw(recorded))
    texts = [element for element in root if element.tag.endswith("text")]
    names = [element.text for element in texts if element.get("text-anchor") == "end"]
    assert names == [recorded.title(peer, ["kubectl-exec"]) for peer in WAYS]
    bars = sum(peer in recorded.peers(measure) for measure, _ in PANELS for peer in WAYS)
    heights = [int(str(element.get("y"))) for element in texts if element.get("text-anchor") == "end"]
    assert heights == sorted(heights)
    assert len([element for element in root if element.tag.endswith("rect")]) == 1 + bars


def test_the_readmes_table_is_put_between_its_markers_and_nothing_else_changes(
    recorded: Results, tmp_path: Path
) -> None:
    """A second time too."""
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nMore.\n")
    for _ in range(2):
        done = report("--readme", path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert path.read_text() == f"# Title\n\n{BEGIN}\n{short_table(recorded)}\n{END}\n\nMore.\n"
    for title in ("**fastvsock, splice**", "**fastvsock exec, static**", "dbclient and dropbear"):
        assert title in short_table(recorded)
    assert "C, splice" not in short_table(recorded)


def suite(seconds: dict[str, list[float]], command: str = "made up") -> Any:
    """Results of `start` as pyperf has them, one round for each value."""
    import pyperf  # type: ignore[import-untyped,unused-ignore]

    about = {"measure": "start", "measure_title": "start", "measure_kind": "start", "bytes": 1, "load_avg_1min": 0.0}
    benchmarks = []
    for peer, values in seconds.items():
        common = about | {"name": f"start/{peer}/time", "peer": peer, "peer_title": peer, "bench_command": command}
        runs = [
            pyperf.Run([value], metadata=common | {"round": number}, collect_metadata=False)
            for number, value in enumerate(values)
        ]
        benchmarks.append(pyperf.Benchmark(runs))
    return pyperf.BenchmarkSuite(benchmarks)


@pytest.mark.parametrize(
    ("static", "verdict"),
    [([0.1, 10.0], "| 0.1 (0.1 to 0.1) | yes |"), ([0.2, 20.0], "| 0.2 (0.2 to 0.2) | **no**")],
)
def test_a_target_stands_beside_the_ratio_within_rounds(static: list[float], verdict: str) -> None:
    """One eighth of the installation's start, in a machine that becomes a hundred times slower."""
    (row,) = [
        line
        for line in page(Results(suite({"static": static, "installed": [1.0, 100.0]}))).splitlines()
        if "at most 1/8" in line
    ]
    assert verdict in row


def test_a_target_whose_peers_were_not_measured_is_not_on_the_page() -> None:
    assert "## Targets" not in page(Results(suite({"splice": [1.0]})))


def test_every_target_that_is_missed_has_a_reason(recorded: Results) -> None:
    missed = [target for target in TARGETS if (found := target.measured(recorded)) and not target.reached(found)]
    assert not [target.text for target in missed if not target.reason]


def test_every_target_was_measured(recorded: Results) -> None:
    assert not [target.text for target in TARGETS if not target.measured(recorded)]


def test_files_with_different_facts_show_all_of_them() -> None:
    one, two = suite({"splice": [1.0]}, "first"), suite({"copy": [1.0]}, "second")
    assert "| command | `first`; `second` |" in page(Results(one, two))


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END} {BEGIN}"])
def test_a_page_without_both_markers_is_an_error_and_stays_as_it_is(
    recorded: Results, tmp_path: Path, text: str
) -> None:
    """The error says which lines to add."""
    path = tmp_path / "README.md"
    path.write_text(text)
    done = report("--readme", path)
    assert done.returncode == 1
    assert done.stderr.startswith("bench: cannot place the table: add the lines <!--")
    assert path.read_text() == text
    with pytest.raises(ResultsError):
        replace_table(text, recorded)


@pytest.mark.parametrize(
    ("quantity", "median", "text"),
    [
        ("rate", 2.345, "2.3 GiB/s (1.2 to 4.7)"),
        ("rate", 0.4, "0.40 GiB/s (0.20 to 0.80)"),
        ("cpu-per-GiB", 0.0861, "0.086 s/GiB (0.043 to 0.17)"),
        ("time", 0.0125, "12 ms (6.2 to 25)"),
        ("p50", 0.00098, "980 µs (490 to 1960)"),
        ("charged", 161 * 2.0**20, "161 MiB (80 to 322)"),
    ],
)
def test_a_figure_has_two_digits_its_unit_and_its_spread(quantity: str, median: float, text: str) -> None:
    """The spread has the unit of the median."""
    assert figure(Spread(median, median / 2, median * 2), quantity) == text
