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


def _start() -> list[Target]:
    binary = "start of the static binary"
    return [
        Target(f"{binary}, against the installation's", "start", "time", "static", "splice", Fraction(1, 8)),
        Target(f"{binary}, against socat's", "start", "time", "static", "socat", Fraction(1)),
        Target(
            f"{binary}, plain, against the installation's", "start", "time", "static-plain", "splice", Fraction(1, 2)
        ),
    ]


def _exec() -> list[Target]:
    found = [
        Target(
            "`exec true`, against dbclient and dropbear", "exec-true", "time", "exec-static", "dropbear", Fraction(1, 8)
        )
    ]
    for way, title in (("up", "into the guest"), ("down", "from the guest")):
        measure, stream = f"exec-{way}", f"a stream {title}"
        for base, name, speed, cpu in (
            ("dropbear", "dbclient and dropbear", Fraction(15), Fraction(1, 15)),
            ("raw", "the forwarder alone", Fraction(8, 10), Fraction(125, 100)),
        ):
            found += [
                Target(f"{stream}, speed against {name}", measure, "rate", "exec-static", base, speed, at_least=True),
                Target(f"{stream}, CPU time against {name}", measure, "cpu-per-GiB", "exec-static", base, cpu),
            ]
    rest = "the static agent at rest, MiB (PSS)"
    return [*found, Target(rest, "exec-memory", "at-rest", "exec-static", "", Fraction(8 * MIB))]


def _copies() -> list[Target]:
    found = []
    for way, title in (("up", "into the guest"), ("down", "from the guest")):
        file, tree = f"`cp` of a file {title}", f"`cp` of the standard library {title}"
        measure = f"cp-tree-{way}"
        found += [
            Target(
                f"{file}, speed against cat", f"cp-file-{way}", "rate", "cp-static", "cat-raw", Fraction(8, 10), True
            ),
            Target(f"{tree}, against tar by dbclient", measure, "time", "cp-static", "tar-dropbear", Fraction(1, 8)),
            Target(f"{tree}, against tar and the forwarder", measure, "time", "cp-static", "tar-raw", Fraction(1)),
        ]
    return found


def _kubectl() -> list[Target]:
    floor = "against the same command run without a guest"
    copies = {"up": "into", "down": "from"}
    return [
        Target("`kubectl exec`, " + floor, "kubectl-exec", "time", "channels", "floor", Fraction(3, 2)),
        *(
            Target(
                f"`kubectl cp` {word} the guest, {floor}",
                f"kubectl-cp-{way}",
                "time",
                "channels",
                "floor",
                Fraction(13, 10),
            )
            for way, word in copies.items()
        ),
    ]


TARGETS = (*_start(), *_exec(), *_copies(), *_kubectl())
