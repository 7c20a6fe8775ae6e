"""How a wheel is judged: what a step says where it fails, what measures come to, and when a wheel is rejected."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wheels.common import ROOT, Failed, cache

LIMIT = 0.8  # CPU time of splice over that of copy: not above this, either way


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds, and MiB a transfer, native and emulated."""

    rounds: int
    native: int
    emulated: int


FULL, QUICK = Pace(5, 256, 32), Pace(3, 128, 16)


def reasons(audits: dict[str, str], runs: list[dict[str, Any]]) -> list[str]:
    """Why a wheel is rejected; an empty list where it is not."""
    found = [f"{name}: {outcome}" for name, outcome in audits.items() if outcome.startswith("FAILED")]
    if not runs:
        found.append("it ran nowhere")
    for one in runs:
        found += [f"{one['place']}: {name}: {one[name]}" for name in ("core", "pytest") if "FAILED" in one[name]]
        if "failure" in one:
            found.append(f"{one['place']}: {one['failure']}")
            continue
        for way, measure in one["ratios"].items():
            if measure["ratio"] > LIMIT:
                found.append(f"{one['place']}: {way}, splice takes {measure['ratio']:.2f} of copy's CPU time")
    return found


def text(step: Callable[[], str]) -> str:
    try:
        return step()
    except Failed as error:
        return failed(error)


def failed(error: Failed) -> str:
    """What a report says of a failure, without the paths of the machine that it happened on."""
    return f"FAILED: {error}".replace(str(cache()), "CACHE").replace(str(ROOT), "ROOT")


def medians(result: Path) -> dict[str, float]:
    """The median of each benchmark in a file of pyperf's."""
    return {
        one["metadata"]["name"]: statistics.median(value for part in one["runs"] for value in part.get("values", ()))
        for one in json.loads(result.read_text())["benchmarks"]
    }


def compare(rounds: list[dict[str, float]], way: str) -> dict[str, float]:
    """Splice over copy in each round, and the seconds of both."""
    ratios = [one[f"{way}, splice"] / one[f"{way}, copy"] for one in rounds]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
        "splice": round(statistics.median(one[f"{way}, splice"] for one in rounds), 4),
        "copy": round(statistics.median(one[f"{way}, copy"] for one in rounds), 4),
    }
