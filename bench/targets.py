"""What the figures should be: ratios between two peers in the same rounds, or amounts, each with a limit.

`reason` says why a target is missed, and is shown where it is; one that is reached needs none.
"""

from dataclasses import dataclass
from fractions import Fraction

from .results import Results, Spread, paired, spread

MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """A quantity of `peer`, divided by that of `base` where there is one, is at most `limit`, or at least."""

    text: str
    measure: str
    quantity: str
    peer: str
    base: str
    limit: Fraction
    at_least: bool = False
    reason: str = ""

    def measured(self, results: Results) -> Spread | None:
        """The ratios by round, or the amounts; None where one of the two was not measured."""
        values = results.values(self.measure, self.peer, self.quantity)
        if self.base:
            found = paired(values, results.values(self.measure, self.base, self.quantity))
        else:
            found = list(values.values())
        return spread(found) if found else None

    def reached(self, found: Spread) -> bool:
        """Whether the median keeps the limit."""
        return found.median >= self.limit if self.at_least else found.median <= self.limit


RELAYS = "the forwarder's child holds the socket itself; a channel relays at each end, as `raw-relayed` does in C"
WRITER = "one process takes the bytes and writes the file, where the forwarder and cat share that work"
FILES = "tar makes a file under its name; here it has another one until it is whole, and is acknowledged"
CPUS = "the client and the agent share two CPUs with kubectl and the API server, which are all that the floor has"
SCRIPT = "RunCVM's script starts some twenty processes of its own before it becomes the client; the floor has no script"
SPAWN = "1.2 ms of either are this benchmark's own, which `true` takes too; without them it is less than a fifteenth"
PLAIN = (
    "it initialises the interpreter as the installation does, and saves the search for modules only: half of its time "
    "is that initialisation, a quarter the loading of bytecode"
)
WAYS = (("up", "into"), ("down", "from"))


def _start() -> list[Target]:
    binary = "start of the static binary"
    return [
        Target(
            f"{binary}, against the installation's",
            "start",
            "time",
            "static",
            "installed",
            Fraction(1, 8),
            reason=SPAWN,
        ),
        Target(f"{binary}, against socat's", "start", "time", "static", "socat", Fraction(1)),
        Target(
            f"{binary} (plain), against the installation's",
            "start",
            "time",
            "static-plain",
            "installed",
            Fraction(1, 2),
            False,
            PLAIN,
        ),
    ]


def _exec() -> list[Target]:
    true, rest = "`exec true`, against dbclient and dropbear", "the static agent at rest, MiB (PSS)"
    found = [
        Target(true, "exec-true", "time", "exec-static", "dropbear", Fraction(1, 8)),
        Target(rest, "exec-memory", "at-rest", "exec-static", "", Fraction(8 * MIB)),
    ]
    for way, word in WAYS:
        for base, name, speed, cpu, reason in (
            ("dropbear", "dbclient and dropbear", Fraction(15), Fraction(1, 15), ""),
            ("raw", "the forwarder alone", Fraction(8, 10), Fraction(125, 100), RELAYS),
        ):
            stream, measure = f"a stream {word} the guest, {{}} against {name}", f"exec-{way}"
            found += [
                Target(stream.format("speed"), measure, "rate", "exec-static", base, speed, True, reason),
                Target(stream.format("CPU time"), measure, "cpu-per-GiB", "exec-static", base, cpu, False, reason),
            ]
    return found


def _copies() -> list[Target]:
    found = []
    for way, word in WAYS:
        file, tree = (f"`cp` of {what} {word} the guest, " for what in ("a file", "the standard library"))
        measure = f"cp-tree-{way}"
        found += [
            Target(
                f"{file}speed against cat",
                f"cp-file-{way}",
                "rate",
                "cp-static",
                "cat-raw",
                Fraction(8, 10),
                True,
                WRITER,
            ),
            Target(f"{tree}against tar by dbclient", measure, "time", "cp-static", "tar-dropbear", Fraction(1, 8)),
            Target(f"{tree}against tar", measure, "time", "cp-static", "tar-raw", Fraction(1), False, FILES),
        ]
    return found


def _kubectl() -> list[Target]:
    found = [("kubectl-exec", "`kubectl exec`", Fraction(3, 2), SCRIPT)]
    found += [(f"kubectl-cp-{way}", f"`kubectl cp` {word} the guest", Fraction(13, 10), CPUS) for way, word in WAYS]
    return [
        Target(f"{text}, against the command itself", measure, "time", "channels", "floor", limit, False, reason)
        for measure, text, limit, reason in found
    ]


TARGETS = (*_start(), *_exec(), *_copies(), *_kubectl())
