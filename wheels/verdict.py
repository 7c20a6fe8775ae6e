"""How a wheel is judged: what a step says where it fails, what measures come to, and when a wheel is rejected."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wheels.common import PYTHON, ROOT, Failed, cache, environment, run

LIMIT = 0.8  # CPU time of splice over that of copy: not above this, either way
WAITS = {"start": ("program", "interpreter", 2.0), "exec": ("exec", "dbclient", 1.0)}  # time of one over the other's


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds, and MiB a transfer, native and emulated; rounds of what a user waits for."""

    rounds: int
    native: int
    emulated: int
    waits: int


FULL, QUICK = Pace(5, 256, 32, 21), Pace(3, 128, 16, 5)


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
        for name, measure in one["waits"].items():
            ours, other, limit = WAITS[name]
            if measure["ratio"] > limit:
                found.append(f"{one['place']}: {name}, {ours} takes {measure['ratio']:.2f} of {other}'s time")
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
    """Splice over copy in each round, and the CPU seconds a GiB of both."""
    return _ratios([{name: one[f"{way}, {name}"] for name in ("splice", "copy")} for one in rounds], "splice", "copy")


def waits(words: dict[str, list[str]], pace: Pace, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What a user waits for, in ms, by the commands that `words` starts (waits.py). Raises `Failed`."""
    script, python = Path(__file__).with_name("waits.py"), environment("run", PYTHON)
    said = run([python, script, f"--rounds={pace.waits}", json.dumps(words)], env=env, timeout=900)
    return {name: _ratios(rounds, *WAITS[name][:2]) for name, rounds in json.loads(said).items()}


def _ratios(rounds: list[dict[str, float]], ours: str, other: str) -> dict[str, float]:
    ratios = [one[ours] / one[other] for one in rounds]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
        ours: round(statistics.median(one[ours] for one in rounds), 4),
        other: round(statistics.median(one[other] for one in rounds), 4),
    }
