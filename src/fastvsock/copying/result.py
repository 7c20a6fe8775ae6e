"""What became of a copy, as Python programs get it."""

import os
from dataclasses import dataclass, field

from .. import errors
from . import entries
from .report import Report


@dataclass(frozen=True)
class Failure:
    """An entry that is not at the target: its path at the source, the reason in words, and an errno or 0."""

    path: str
    reason: str
    errno: int = 0

    def __str__(self) -> str:
        return f"{errors.printable(self.path)}: {self.reason}"


@dataclass
class CopyResult:
    """What was copied, was there already, and is not there, by the paths at the source. `bytes` are of content."""

    copied: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    bytes: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything is there."""
        return not self.failed


class Collection(Report):
    """Collects a `CopyResult`."""

    def __init__(self) -> None:
        self.result = CopyResult()

    def copied(self, path: bytes, size: int) -> None:
        """Add it to the result."""
        self.result.copied.append(os.fsdecode(path))
        self.result.bytes += size

    def skipped(self, path: bytes, size: int) -> None:
        """Add it to the result."""
        self.result.skipped.append(os.fsdecode(path))

    def failed(self, path: bytes, kind: int, number: int) -> None:
        """Add it to the result."""
        self.result.failed.append(Failure(os.fsdecode(path), entries.describe(kind, number), number))
