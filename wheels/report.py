"""VALIDATION.md from the JSON report of `validate.py`: tables for a person, and no figure that the run did not give."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wheels.common import HERE
from wheels.verdict import WAITS

HEAD = """\
# The wheels of fastvsock {version}, validated

Written by `make validate-wheels` on {date}, in {minutes} minutes, from the figures in VALIDATION.json{quick}.
Machine: {processor}, {cores} cores, Linux {kernel}. Source: `{source}`, a SHA-256 over sources, pins and recipe.
"""
RATIOS = """\
## Splice against copy

CPU time of the relay's process, user and system. The ratio is splice over copy, the median of rounds in each of which
both ran within seconds, with the least and the most of them; above {limit} a wheel is rejected. Under qemu-user splice
is a real system call, and everything around it is emulated: the ratio means something there, the seconds do not, and
are left out.
"""
WAITED = """\
## What a user waits for

Medians of rounds in which the programs took turns, and of the ratios within a round. *Start*: runcvm-vsock-connect to
the first byte from the guest; the interpreter to a byte of its own (beside a static binary it is this machine's).
*Exec*: `true` in the guest by `fastvsock exec`, and by dbclient and dropbear where these are installed. A wheel is
rejected above {start} and {exec}. An emulated program is not timed.
"""
RUNS = """\
## What ran

The musl CPython 3.11.2 is Debian's source built with zig, on Debian's musl 1.2.3: a substitute for Alpine's own, on
which the workflow `wheels` runs the same checks. Where pytest cannot run, the core check (core_check.py) speaks alone:
each engine's echo, source and ends, the command, and through an agent a command and files, compared by their bytes.
"""
Wheel = dict[str, Any]


def markdown(report: dict[str, Any]) -> str:
    """The text of VALIDATION.md."""
    wheels: list[Wheel] = report["wheels"]
    facts = report["machine"] | {name: report[name] for name in ("version", "date", "minutes", "source")}
    audits = list(dict.fromkeys(name for wheel in wheels for name in wheel["audits"]))
    verdicts = [(_short(wheel), f"`{wheel['sha256']}`", _verdict(wheel)) for wheel in wheels]
    measures = [row for wheel in wheels for row in _measures(wheel)]
    runs = [(_short(wheel), at["place"], at["core"], at["pytest"]) for wheel in wheels for at in wheel["runs"]]
    outside = [(_short(one), *(one["audits"].get(name, "") for name in audits), str(one["bytes"])) for one in wheels]
    columns = ("wheel", "place", "way", "ratio", "spread", "splice, CPU s/GiB", "copy, CPU s/GiB")
    limits = {name: limit for name, (_, _, limit) in WAITS.items()}
    waited = ("wheel", "place", "what", "ratio", "spread", "ours, ms", "the other, ms")
    parts = [
        HEAD.format(**facts, quick="; a quick run, which proves less" if report["quick"] else ""),
        _table(("wheel", "SHA-256", "verdict"), verdicts),
        *(f"- {_short(wheel)} is rejected: {_cell(reason)}\n" for wheel in wheels for reason in wheel["reasons"]),
        RATIOS.format(limit=report["limit"]),
        _table(columns, measures),
        WAITED.format(**limits),
        _table(waited, [row for wheel in wheels for row in _waits(wheel)]),
        RUNS,
        _table(("wheel", "place", "core check", "behaviour tests"), runs),
        "## Seen from outside\n",
        _table(("wheel", *audits, "bytes"), outside),
    ]
    return "\n".join(parts)


def lacking(wheels: dict[str, str], folder: Path = HERE) -> list[str]:
    """What VALIDATION.json and VALIDATION.md in `folder` lack as a record of a full validation that accepted `wheels`.

    `wheels` are names with their SHA-256.
    """
    report = json.loads((folder / "VALIDATION.json").read_text())
    validated: list[Wheel] = report["wheels"]
    flaws = {
        "it was a quick run": report["quick"],
        "it is of other wheels": {wheel["name"]: wheel["sha256"] for wheel in validated} != wheels,
        "a wheel was rejected": any(wheel["reasons"] for wheel in validated),
        "a wheel ran nowhere": not all(wheel["runs"] for wheel in validated),
        "VALIDATION.md is not made from it": (folder / "VALIDATION.md").read_text() != markdown(report),
    }
    return [flaw for flaw, found in flaws.items() if found]


def _measures(wheel: Wheel) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for at in wheel["runs"]:
        for way, one in at.get("ratios", {}).items():
            spread = f"{one['least']:.2f} to {one['most']:.2f}"
            seconds = ("emulated", "emulated") if at["emulated"] else (f"{one['splice']:.3f}", f"{one['copy']:.3f}")
            rows.append((_short(wheel), at["place"], way, f"{one['ratio']:.2f}", spread, *seconds))
    return rows


def _waits(wheel: Wheel) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for at in wheel["runs"]:
        for name, one in at.get("waits", {}).items():
            ours, other, _ = WAITS[name]
            spread = f"{one['least']:.2f} to {one['most']:.2f}"
            times = (f"{one[ours]:.1f}", f"{one[other]:.1f}")
            rows.append((_short(wheel), at["place"], f"{name} / {other}", f"{one['ratio']:.2f}", spread, *times))
    return rows


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _short(wheel: Wheel) -> str:
    name = str(wheel["name"]).removesuffix(".whl")
    return name.partition("abi3-")[2] or f"static, {name.rpartition('_1_2_')[2]}"


def _verdict(wheel: Wheel) -> str:
    return "REJECTED" if wheel["reasons"] else "accepted"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
