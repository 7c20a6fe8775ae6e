"""The table of measures. A full run takes all of them, a quick run the small ones.

Bulk work is `size` bytes each way, shared by `relays` forwarders at a time, from the moment that all are connected
until the last byte has arrived; the producer writes `chunk` bytes at a time. Latency is one exchange of `size` bytes
at a time. Start is the time from the command to the first byte that comes out of it, the whole is the time to its end;
at rest nothing is measured but memory. A stall is bulk work whose far end does not read until every producer is
blocked: what is measured is the memory that is held in between.
"""

from dataclasses import dataclass, replace
from typing import Any

MIB = 1 << 20
GIB = 1 << 30
EXCHANGES = 1000


@dataclass(frozen=True)
class Measure:
    """One piece of work. Sizes are in bytes; `rounds` is for a full run and for a quick one (0: not in it)."""

    name: str
    title: str
    kind: str  # bulk, latency, start, whole, rest or stall
    way: str = "up"  # up, down or both; of a whole command also exec, or again for a copy of what is there already
    ends: str = "pipe"  # what the peer's stdin and stdout are: pipe, socketpair, file, tty; tcp; or tree for a copy
    size: int = 64 * MIB
    chunk: int = 1 << 16
    relays: int = 1
    rounds: tuple[int, int] = (15, 0)
    actors: tuple[str, ...] = ()  # the kinds of peer that can do it, where `kinds` does not follow from the rest

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of peer that can do this work."""
        if self.actors:
            return self.actors
        if self.ends == "tcp":
            return ("proxy",)
        if self.kind == "start":
            return ("stdio", "start", "none", "bare")
        if self.ends == "file" or self.relays > 1:
            return ("stdio",)
        return ("stdio", "none")

    @property
    def full_title(self) -> str:
        """The title with the amount of work."""
        return f"{self.title}, {unit(self.size)}" if self.kind == "bulk" else self.title

    @property
    def share(self) -> int:
        """Bytes of one relay each way: whole blocks of 64 KiB, for a peer that waits for whole ones (`threads`)."""
        return self.size // self.relays >> 16 << 16 or self.size

    @property
    def moved(self) -> int:
        """Bytes in all, both ways together."""
        return self.share * self.relays * (2 if self.way == "both" else 1)


def unit(size: int) -> str:
    """A size with the largest unit that fits."""
    for factor, name in ((GIB, "GiB"), (MIB, "MiB"), (1024, "KiB")):
        if size >= factor:
            return f"{size / factor:g} {name}"
    return f"{size} B"


def _ways(suffix: str, through: str, full: int, quick: dict[str, int], **details: Any) -> list[Measure]:
    base = Measure("", "", "bulk", **details)
    names = {"up": "host to guest", "down": "guest to host", "both": "both ways at once"}
    return [
        replace(base, name=f"{way}{suffix}", title=f"{title}, {through}", way=way, rounds=(full, quick.get(way, 0)))
        for way, title in names.items()
    ]


def _latency(name: str, size: int, ends: str, quick: int) -> Measure:
    through = "through the proxy, " if ends == "tcp" else ""
    return Measure(name, f"{through}round trip of {unit(size)}", "latency", "both", ends, size, rounds=(15, quick))


def _growing() -> list[Measure]:
    return [
        Measure(f"size-{unit(size).replace(' ', '')}", "host to guest, through pipes", "bulk", size=size, rounds=(7, 0))
        for size in (MIB, 4 * MIB, 16 * MIB, 256 * MIB)
    ]


def _chunks() -> list[Measure]:
    quick = {1 << 10: 2, 1 << 14: 2, 1 << 18: 2}
    return [
        Measure(
            f"chunk-{unit(chunk).replace(' ', '')}",
            f"host to guest, written {unit(chunk)} at a time",
            "bulk",
            size=16 * MIB,
            chunk=chunk,
            rounds=(9, quick.get(chunk, 0)),
        )
        for chunk in (1 << 9, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
    ]


def _relays() -> list[Measure]:
    return [
        Measure(f"relays-{n}", f"host to guest, {n} relays at a time", "bulk", relays=n, rounds=rounds)
        for n, rounds in ((10, (7, 0)), (100, (5, 0)))
    ]


MEASURES = (
    *_ways("", "through pipes", 25, {"up": 5, "down": 5, "both": 3}),
    *_ways("-1G", "through pipes", 7, {}, size=GIB),
    *_ways("-socketpair", "through a socketpair", 15, {"down": 3}, ends="socketpair"),
    Measure("up-file", "host to guest, from a file", "bulk", ends="file", rounds=(15, 2)),
    _latency("latency-1", 1, "pipe", 0),
    _latency("latency-64", 64, "pipe", 3),
    _latency("latency-4K", 4096, "pipe", 0),
    _latency("latency-64K", 1 << 16, "pipe", 0),
    Measure("start", "start to first byte", "start", "down", size=1, rounds=(31, 5)),
    *_chunks(),
    *_growing(),
    *_relays(),
    # At 64 MiB the first windows of TCP would be much of it.
    Measure("proxy-up", "through the proxy, host to guest", "bulk", "up", "tcp", 256 * MIB, rounds=(15, 5)),
    Measure("proxy-down", "through the proxy, guest to host", "bulk", "down", "tcp", 256 * MIB, rounds=(15, 5)),
    _latency("proxy-latency-64", 64, "tcp", 2),
    Measure("proxy-start", "through the proxy, connect to first byte", "start", "down", "tcp", size=1, rounds=(31, 3)),
    Measure("proxy-relays-100", "through the proxy, 100 at a time", "bulk", "up", "tcp", relays=100, rounds=(5, 0)),
    # 32 MiB each is more than the buffers of any peer hold.
    Measure("stalled-20", "20 stalled uploads", "stall", "up", "pipe", 640 * MIB, relays=20, rounds=(3, 0)),
    Measure(
        "proxy-stalled-20",
        "through the proxy, 20 stalled uploads",
        "stall",
        "up",
        "tcp",
        640 * MIB,
        relays=20,
        rounds=(3, 0),
    ),
)
