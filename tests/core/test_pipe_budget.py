"""What the pumps of a process may take of the pipe pages of its user."""

import builtins
import io
import os
from typing import Any

import pytest

from fastvsock import engines

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("pages", "share"),
    [(b"16384\n", 4096 * PAGE), (b"4\n", PAGE), (b"0\n", float("inf")), (None, 4096 * PAGE)],
    ids=["the usual limit", "a small limit", "no limit", "no /proc"],
)
def test_the_share_is_a_quarter_of_the_soft_limit(
    pages: bytes | None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, mode: str) -> Any:
        if pages is None:
            raise FileNotFoundError
        return io.BytesIO(pages)

    monkeypatch.setattr(builtins, "open", read)
    budget = engines.PipeBudget()
    is_whole_share = budget.take(int(min(share, 1 << 40)), False)
    takes_more = budget.take(1, False)
    monkeypatch.undo()
    assert (is_whole_share, takes_more) == (True, share == float("inf"))


def test_growing_ends_at_half_of_the_share_and_usual_pipes_at_all_of_it() -> None:
    budget = engines.PipeBudget(100)
    assert not budget.take(51, True)
    assert budget.take(50, True)
    assert not budget.take(1, True)
    assert not budget.take(51, False)
    assert budget.take(50, False)
    assert not budget.take(1, False)
    assert budget.taken == 100


def test_what_is_given_back_can_be_taken_again() -> None:
    budget = engines.PipeBudget(100)
    assert budget.take(50, True)
    budget.give_back(50)
    assert budget.taken == 0
    assert budget.take(50, True)
