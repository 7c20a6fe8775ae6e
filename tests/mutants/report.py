"""What the sessions say: figures for each module, and the mutants that no test noticed."""

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosmic_ray.work_item import TestOutcome, WorkerOutcome

from .run_tests import OUT_OF_TIME

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
ENOUGH = 0.95  # of the mutants that tests could notice


@dataclass
class Figures:
    """Of one module. `explained` are the survivors that equivalent.toml lists."""

    module: str
    waiting: int = 0
    caught: int = 0
    out_of_time: int = 0  # among those caught
    explained: int = 0
    survived: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # explanations that fit no survivor

    @property
    def rate(self) -> float:
        tried = self.caught + len(self.survived)
        return self.caught / tried if tried else 1.0


def figures(module: str, database: Any) -> Figures:
    result = Figures(module, waiting=database.num_work_items - database.num_results)
    explanations = set(_explanations(module))
    used = set()
    for _, work in database.completed_work_items:
        if work.worker_outcome == WorkerOutcome.SKIPPED:
            continue
        if work.test_outcome != TestOutcome.SURVIVED:
            result.caught += 1
            result.out_of_time += OUT_OF_TIME in (work.output or "")
        elif (change := changed_lines(work.diff)) in explanations:
            result.explained += 1
            used.add(change)
        else:
            result.survived.append(f"{_place(work.diff)}: {change[0]}  ->  {change[1]}")
    result.survived.sort()
    if not result.waiting:
        result.unused = sorted(" -> ".join(change) for change in explanations - used)
    return result


def table(all_figures: Iterable[Figures]) -> Iterator[str]:
    columns = "mutants", "caught", "in time", "survived", "explained", "waiting", "rate"
    yield " ".join([f"{'module':24}", *(f"{name:>9}" for name in columns)])
    for each in all_figures:
        survived = len(each.survived)
        mutants = each.caught + survived + each.explained + each.waiting
        counts = mutants, each.caught, each.caught - each.out_of_time, survived, each.explained, each.waiting
        rate = f"{each.rate:9.1%}" if each.caught + survived else f"{'-':>9}"
        yield " ".join([f"{each.module:24}", *(f"{count:9}" for count in counts), rate])


def changed_lines(diff: str) -> tuple[str, str]:
    """The line that a mutant changes, and what it becomes; the parts of a long statement with one space between."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    old, new = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return old, new


def _place(diff: str) -> str:
    """The line's number: a hunk begins three lines before its first change, or at the file's beginning."""
    lines = diff.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("@@"))
    first = int(lines[header].split()[1].lstrip("-").partition(",")[0])
    before = next(index for index, line in enumerate(lines[header + 1 :]) if line.startswith(("-", "+")))
    return f"line {first + before:4}"


def _explanations(module: str) -> Iterator[tuple[str, str]]:
    for entry in tomllib.loads(EQUIVALENT.read_text()).get("mutant", []):
        if entry["module"] == module:
            yield from ((entry["line"], changed) for changed in entry["changed"])
