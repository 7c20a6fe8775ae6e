"""The command behind `make mutants`; runs with the Python that has cosmic-ray."""

import argparse
import fcntl
import os
import queue
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic
from typing import IO, Any

import attrs
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import TestOutcome

from .copies import BUILD, prepare
from .report import ENOUGH, figures, table
from .session import draw, open_session
from .table import PACKAGE, TESTS

GRACE = 30  # seconds for run_tests.py to clean up behind a mutant that has passed its limit


class Runner:
    """Tries mutants, as many at a time as there are copies, until `give_up`."""

    def __init__(self, copies: list[Path], limit: float, give_up: float, sample: int | None) -> None:
        self._free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for copy in copies:
            self._free.put(copy)
        self._jobs, self._limit, self._give_up, self._sample = len(copies), limit, give_up, sample

    def run(self, module: str, database: WorkDB, again: bool) -> None:
        """Try what has survived, if `again`, and what is waiting. Each result is kept as soon as it is there."""
        results = database.completed_work_items if again else ()
        items = [item for item, work in results if work.test_outcome == TestOutcome.SURVIVED]
        items += database.pending_work_items
        if self._sample is not None:
            drawn = draw(database, self._sample)
            items = [item for item in items if item.job_id in drawn]
        if not items or monotonic() >= self._give_up:
            return
        with ThreadPoolExecutor(self._jobs) as threads:
            check = threads.submit(self._check, module)
            futures = {threads.submit(self._try, module, item): item.job_id for item in items}
            tried = 0
            try:
                check.result()
                for future in as_completed(futures):
                    if future.result() is not None:
                        database.set_result(futures[future], future.result())
                        tried += 1
                        print(f"\r{module}: {tried} of {len(items)}", end="", file=sys.stderr, flush=True)
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        print(file=sys.stderr)

    def _check(self, module: str) -> None:
        copy = self._free.get()
        outcome, output = run_tests(self._command(copy, module), self._limit + GRACE)
        self._free.put(copy)
        if outcome != TestOutcome.SURVIVED:
            sys.exit(f"mutants: the tests of {module} fail without any mutant, so they can judge none:\n{output}")

    def _try(self, module: str, item: Any) -> Any:
        copy = self._free.get()
        try:
            if monotonic() >= self._give_up:
                return None
            mutations = [attrs.evolve(each, module_path=copy / PACKAGE / module) for each in item.mutations]
            return mutate_and_test(mutations, self._command(copy, module), self._limit + GRACE)
        finally:
            self._free.put(copy)

    def _command(self, copy: Path, module: str) -> str:
        words = [copy / ".venv/bin/python", copy / "tests/mutants/run_tests.py", self._limit, *TESTS[module]]
        return shlex.join(map(str, words))


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    unknown = set(options.modules) - set(TESTS)
    if unknown:
        sys.exit(f"mutants: unknown module {min(unknown)!r}: use {', '.join(TESTS)}")
    os.nice(10)
    with ExitStack() as stack:
        sessions = {module: stack.enter_context(closing(open_session(module))) for module in options.modules or TESTS}
        if options.budget:
            _lock(stack.enter_context((BUILD / "lock").open("w")))
            give_up = monotonic() + 60 * options.budget
            copies = [prepare(number) for number in range(options.jobs)]
            runner = Runner(copies, options.limit, give_up, options.sample)
            for module, database in sessions.items():
                runner.run(module, database, options.again)
        return _report(sessions)


def _lock(file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"mutants: another run has {BUILD}: wait for its end")


def _report(sessions: dict[str, WorkDB]) -> int:
    all_figures = [figures(module, database) for module, database in sessions.items()]
    print(*table(all_figures), sep="\n")
    for each in all_figures:
        for survivor in each.survived:
            print(f"survived: {each.module} {survivor}")
        for change in each.unused:
            print(f"in equivalent.toml, but no survivor: {each.module}: {change}")
    return int(any(each.rate < ENOUGH for each in all_figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make mutants MUTANTS='...'",
        description="Change the code one place at a time and see whether a test notices. A run goes on where the last "
        f"one stopped. Exit status 1: fewer than {ENOUGH:.0%} of a module's mutants were caught.",
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="as mutants/table.py names them (default: all)")
    parser.add_argument("--budget", type=float, default=60, help="minutes for all of it; 0 only reports (default 60)")
    parser.add_argument("--limit", type=float, default=180, help="seconds for a mutant's tests (default 180)")
    parser.add_argument(
        "--jobs", type=int, default=8, help="mutants at a time, each in a copy (default 8: most tests wait)"
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="only N mutants of each module, the same ones each time (default: all)"
    )
    parser.add_argument("--again", action="store_true", help="first try the survivors again, after tests were added")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
