"""The changes that an install or uninstall makes to a bundle, and how they are shown."""

import difflib
import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

from .bundle_files import Content, File
from .payload import Package


@dataclass(frozen=True)
class Change:
    """One path of the bundle: what is there now, and what will be."""

    path: str
    before: Content
    after: Content

    def show(self) -> str:
        """The change as a unified diff; a link's old and new target, and a binary file, in a line each."""
        before, after = self.before, self.after
        if isinstance(before, str) or isinstance(after, str):
            return self._line("-", before) + self._line("+", after)
        if before and after and before.data == after.data:
            return f"mode of {self.path} changed\n"
        if _is_binary(before) or _is_binary(after):
            former = ", in place of another" if before else ""
            return self._line("-", before) if after is None else self._line("+", after, former)
        old, new = (_lines(file) for file in (before, after))
        lines = difflib.unified_diff(old, new, self._name("a", before), self._name("b", after))
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def _line(self, sign: str, content: Content, former: str = "") -> str:
        """A link by its target, or a file by its size and digest; empty for nothing."""
        if content is None:
            return ""
        if isinstance(content, str):
            return f"{sign}{self.path} -> {content}\n"
        digest = hashlib.sha256(content.data).hexdigest()
        return f"{sign}{self.path} ({len(content.data)} bytes, SHA-256 {digest}{former})\n"

    def _name(self, side: str, content: Content) -> str:
        return "/dev/null" if content is None else f"{side}/{self.path}"


@dataclass
class ChangeSet:
    """What an install or uninstall will do, and what it cannot do."""

    changes: list[Change] = field(default_factory=list)
    journal: dict[str, Any] = field(default_factory=dict)
    package: Package | None = None  # if its files are not there yet
    stale: list[str] = field(default_factory=list)  # folders to remove, such as those of former packages
    foreign: set[str] = field(default_factory=set)  # files in them that are not ours, and stay
    unsaved: bool = False  # the journal or its copy has another content
    ran_programs: bool = False  # of the bundle, to find out what works there
    notes: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changes or self.package or self.stale or self.unsaved)

    def lines(self, path: str, *, dry_run: bool = False) -> list[str]:
        """What there is to report of the bundle at `path`: remarks, what was left undone, and the outcome."""
        if not self:
            outcome = "nothing to do"
        elif dry_run:
            outcome = "nothing was changed (--dry-run)"
        else:
            outcome = f"done, {len(self.changes)} file{'s' * (len(self.changes) != 1)} changed"
        ran = "; programs of the bundle were run to find this out" if dry_run and self.ran_programs else ""
        return [*self.notes, *self.undone, f"{path}: {outcome}{ran}"]

    def show(self) -> str:
        """All changes, for the reader."""
        files = f"+{self.package.site()}/ ({len(self.package.files)} files of fastvsock)\n" if self.package else ""
        return files + "".join(change.show() for change in self.changes) + "".join(f"-{path}/\n" for path in self.stale)


def _is_binary(content: Content) -> bool:
    return isinstance(content, File) and b"\0" in content.data


def _lines(content: Content) -> list[str]:
    return list(io.StringIO(text_of(content.data))) if isinstance(content, File) else []


def text_of(data: bytes) -> str:
    """A file's content as text, from which the same bytes can be made again."""
    return data.decode(errors="surrogateescape")
