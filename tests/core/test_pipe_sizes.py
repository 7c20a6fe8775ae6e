"""How large the copy engine makes a pipe, and when it gives the size back, with a kernel that the test plays."""

import errno
import socket

import pytest

from fastvsock.engines import PipeBudget, _copy
from fastvsock.engines._copy import Pipe

KIB, MIB = 1 << 10, 1 << 20
FOREVER = float("inf")


class Kernel:
    """One pipe of the kernel: its size, what it holds, and the largest size that it may get, in bytes."""

    F_GETFL, F_GETPIPE_SZ, F_SETPIPE_SZ = 3, 1032, 1031

    def __init__(self) -> None:
        self.size, self.held, self.most = 64 * KIB, 0, MIB
        self.asked: list[int] = []

    def fcntl(self, fd: int, operation: int, size: int = 0) -> int:
        if operation == self.F_SETPIPE_SZ:
            self.asked.append(size)
            if size > self.most:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            if size < self.held:
                raise OSError(errno.EBUSY, "Device or resource busy")
            self.size = size
        return self.size


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> PipeBudget:
    """The budget of the process, without a limit."""
    budget = PipeBudget(FOREVER)
    monkeypatch.setattr(_copy, "budget", budget)
    return budget


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, budget: PipeBudget) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(_copy, "fcntl", kernel)
    return kernel


def test_a_pipe_grows_once_to_a_mib_and_takes_the_difference_from_the_budget(
    kernel: Kernel, budget: PipeBudget
) -> None:
    pipe = Pipe(0)
    assert not pipe.is_large
    assert pipe.grow()
    assert (pipe.is_large, pipe.size, kernel.size, budget.taken) == (True, MIB, MIB, MIB - 64 * KIB)
    assert not pipe.grow()
    assert (kernel.asked, budget.taken) == ([MIB], MIB - 64 * KIB)


def test_what_the_kernel_refuses_is_asked_for_by_halves_and_given_back(kernel: Kernel, budget: PipeBudget) -> None:
    kernel.most = 256 * KIB
    pipe = Pipe(0)
    assert pipe.grow()
    assert kernel.asked == [MIB, 512 * KIB, 256 * KIB]
    assert (pipe.size, budget.taken) == (256 * KIB, 192 * KIB)


def test_what_the_budget_refuses_is_not_asked_for(
    kernel: Kernel, budget: PipeBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = PipeBudget(256 * KIB)  # of which half is for growing
    monkeypatch.setattr(_copy, "budget", small)
    assert Pipe(0).grow()
    assert (kernel.asked, small.taken) == ([128 * KIB], 64 * KIB)


def test_a_pipe_that_may_not_grow_stays_as_it_is(kernel: Kernel, budget: PipeBudget) -> None:
    kernel.most = 64 * KIB
    pipe = Pipe(0)
    assert not pipe.grow()
    assert not pipe.grow()
    assert kernel.asked == [MIB, 512 * KIB, 256 * KIB, 128 * KIB]
    assert (pipe.is_large, pipe.size, budget.taken) == (False, 64 * KIB, 0)


def test_a_pipe_of_a_mib_is_large_enough(kernel: Kernel, budget: PipeBudget) -> None:
    kernel.size = MIB
    assert not Pipe(0).grow()
    assert (kernel.asked, budget.taken) == ([], 0)


def test_a_pipe_that_rests_gets_its_size_back_and_may_grow_again(kernel: Kernel, budget: PipeBudget) -> None:
    pipe = Pipe(0)
    pipe.grow()
    pipe.shrink()
    assert (pipe.is_large, pipe.size, kernel.size, budget.taken) == (False, 64 * KIB, 64 * KIB, 0)
    pipe.shrink()
    assert kernel.asked == [MIB, 64 * KIB]
    assert pipe.grow()
    assert budget.taken == MIB - 64 * KIB


def test_a_pipe_that_holds_something_keeps_room_for_that(kernel: Kernel, budget: PipeBudget) -> None:
    pipe = Pipe(0)
    pipe.grow()
    kernel.held = 150 * KIB
    pipe.shrink()
    assert kernel.asked[1:] == [64 * KIB, 128 * KIB, 256 * KIB]
    assert (pipe.is_large, pipe.size, budget.taken) == (True, 256 * KIB, 192 * KIB)
    assert not pipe.grow()
    kernel.held = 0
    pipe.shrink()
    assert (pipe.is_large, pipe.size, budget.taken) == (False, 64 * KIB, 0)


def test_a_full_pipe_stays_as_it_is(kernel: Kernel, budget: PipeBudget) -> None:
    pipe = Pipe(0)
    pipe.grow()
    kernel.held = MIB
    pipe.shrink()
    assert kernel.asked[1:] == [64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB]
    assert (pipe.is_large, pipe.size, budget.taken) == (True, MIB, MIB - 64 * KIB)


def test_a_size_that_somebody_else_chose_meanwhile_stays(kernel: Kernel, budget: PipeBudget) -> None:
    pipe = Pipe(0)
    pipe.grow()
    kernel.size = 32 * KIB
    pipe.shrink()
    assert (kernel.size, kernel.asked[1:], budget.taken, pipe.is_large) == (32 * KIB, [], 0, False)


def test_at_the_end_what_a_pipe_still_needs_is_its_owners(kernel: Kernel, budget: PipeBudget) -> None:
    pipe = Pipe(0)
    pipe.grow()
    kernel.held = 100 * KIB
    pipe.let_go()
    assert (kernel.size, budget.taken, pipe.is_large) == (128 * KIB, 0, False)
    kernel.held = 0
    assert pipe.grow(), "should the pump go on"
    assert budget.taken == MIB - 128 * KIB


def test_what_is_not_a_pipe_never_grows(budget: PipeBudget) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pipe = Pipe(ours.fileno())
        for _ in range(2):
            assert (pipe.size, pipe.grow(), pipe.is_large) == (FOREVER, False, False)
            pipe.shrink()
            pipe.let_go()
