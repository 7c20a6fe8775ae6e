"""What one measurement of one peer finds."""

from dataclasses import dataclass


class PeerError(Exception):
    """A peer did not do the work; the text completes a sentence that begins with its name."""


@dataclass
class Sample:
    """The quantities. Times are in seconds, memory in bytes; None stands for what does not apply."""

    seconds: float | None = None
    cpu: float | None = None  # while the bytes moved
    cpu_in_all: float | None = None  # from the start of the processes to their end
    memory: int | None = None  # the peaks of resident memory
    private: int | None = None  # pages that were written to, and are shared with nobody
    faults: int | None = None  # page faults, from the start of the processes on
    resident: int | None = None  # resident memory for what is stalled
    charged: int | None = None  # charged to the memory cgroup for what is stalled
    at_rest: int | None = None  # PSS of what listens in the guest
    serving: int | None = None  # PSS of the guest's side with one client
    client: int | None = None  # PSS of the host's side
    quantiles: tuple[float, ...] = ()  # of round trips: 0 to 100 per cent
    killed: bool = False
