"""How a service connects and relays: what its options say of each connection."""

from dataclasses import dataclass

from .hanging_up import STALLED


@dataclass(frozen=True)
class Terms:
    """How connections are made and relayed. Times are in seconds; `idle_timeout` None is no limit."""

    timeout: float = 10.0
    wait: float = 0.0
    linger: float | None = None
    engine: str | None = None
    idle_timeout: float | None = None

    @property
    def stalled(self) -> float:
        """How long a peer that is to be hung up may leave data unread."""
        return STALLED if self.idle_timeout is None else min(self.idle_timeout, STALLED)
