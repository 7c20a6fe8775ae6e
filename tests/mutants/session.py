"""A session of cosmic-ray for each state of a module, under build/mutants/: its mutants, and what came of each."""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from random import Random
from typing import Any

import cosmic_ray.commands
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import OPERATOR_PROVIDERS, get_operator
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import WorkerOutcome, WorkResult

from .copies import BUILD, ROOT
from .operators import OWN, SELECTED
from .table import PACKAGE

OPERATOR_PROVIDERS["own"] = OWN  # what the entry point of a plug-in would do

Position = tuple[int, int]  # line and column
SEED = 1  # of a sample


def open_session(module: str) -> WorkDB:
    """The session for `module` as it is now, filled where it is new."""
    source = (ROOT / PACKAGE / module).read_text()
    state = hashlib.sha256("\0".join([source, *sorted(SELECTED)]).encode()).hexdigest()[:12]
    path = BUILD / f"{module.removesuffix('.py').replace('/', '.')}-{state}.sqlite"
    if not path.exists():
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        with closing(WorkDB(unfinished, WorkDB.Mode.create)) as database:
            cosmic_ray.commands.init([ROOT / PACKAGE / module], database, {})
            unread = list(_unread(ast.parse(source)))
            skipped = [item.job_id for item in database.work_items if not _counts(item.mutations[0], source, unread)]
            database.set_multiple_results(skipped, WorkResult(WorkerOutcome.SKIPPED))
        unfinished.rename(path)
    return WorkDB(path, WorkDB.Mode.open)


def draw(database: WorkDB, count: int) -> set[str]:
    """The jobs of `count` mutants of a session, drawn with a fixed seed: the same in each session of a source."""
    skipped = {job for job, work in database.results if work.worker_outcome == WorkerOutcome.SKIPPED}
    jobs = [item.job_id for item in sorted(database.work_items, key=_place) if item.job_id not in skipped]
    return set(Random(SEED).sample(jobs, min(count, len(jobs))))


def _place(item: Any) -> tuple[Position, str, int]:
    mutation = item.mutations[0]
    return mutation.start_pos, mutation.operator_name, mutation.occurrence


def _counts(mutation: Any, source: str, unread: list[tuple[Position, Position]]) -> bool:
    """Whether a mutant is one of the selected, in code that runs, and valid Python."""
    if mutation.operator_name not in SELECTED or any(start <= mutation.start_pos < end for start, end in unread):
        return False
    row, column = mutation.start_pos
    if source.splitlines()[row - 1].startswith("*,", column):  # before parameters with names: no multiplication
        return False
    mutated = mutate_code(source, get_operator(mutation.operator_name)(), mutation.occurrence)
    try:
        compile(mutated, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _unread(tree: ast.Module) -> Iterator[tuple[Position, Position]]:
    """From where to where the source is for type checkers only."""
    for node in ast.walk(tree):
        hints: Sequence[ast.expr | ast.stmt | None] = ()
        if isinstance(node, ast.arg | ast.AnnAssign):
            hints = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            hints = [node.returns]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            hints = [node.test, *node.body]
        elif isinstance(node, ast.Assign) and ast.unparse(node) == "TYPE_CHECKING = False":
            hints = [node]
        for hint in hints:
            if hint is not None:
                end = hint.end_lineno or hint.lineno, hint.end_col_offset or hint.col_offset
                yield (hint.lineno, hint.col_offset), end
