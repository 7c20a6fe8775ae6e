"""Records what earlier installs did to a bundle: for each path the original, and the content of ours that may be there.

The journal is stored twice, once beside the backups, which are useless without it: they are named by their content. If
both are lost, what works is still kept: a file of fastvsock's is recognized by its own text, never becomes the original
of anything, and is never removed if its original is unknown.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from typing import Any

from ..errors import BundleError
from . import script_edits
from .binary import NAMED, PROGRAM, TARGET, is_binary
from .bundle import EXEC
from .bundle_files import Content, File, Meta, Root
from .launchers import CONNECT, UMBRELLA, becomes_binary, is_launcher

OURS = ".fastvsock"
JOURNAL = f"{OURS}/manifest.json"
BACKUP = f"{OURS}/backup"
COPY = f"{BACKUP}/manifest.json"
LOCK = f"{OURS}/lock"
FILES = re.compile(rf"{re.escape(OURS)}/(?:backup/)?(?:[0-9a-f]{{64}}|manifest\.json|\.[^/]+\.fastvsock-new)")
FORMAT = 1
LOST = "lost"  # instead of an original's SHA-256

Entry = dict[str, Any]


class Journal:
    """The journal of the bundle at `root`. Raises `BundleError` if it cannot be parsed."""

    def __init__(self, root: Root) -> None:
        self.root = root
        name = JOURNAL if root.kind(JOURNAL) else COPY
        file = root.read(name)
        try:
            content = json.loads(file.data) if file else {}
            self.entries: dict[str, Entry] = dict(content.get("entries", {}))
            self.site, self.former = str(content.get("site", "")), str(content.get("former", ""))
            known = content.get("format", FORMAT) == FORMAT and all(map(_is_entry, self.entries.values()))
        except (ValueError, AttributeError, TypeError, KeyError):
            known = False
        if not known:
            other = f"; without it, its copy {COPY} is read" if name == JOURNAL and root.kind(COPY) else ""
            raise BundleError(
                f"{root.path}/{name}: cannot be parsed: was it written by another version? The originals are "
                f"in {BACKUP}, by their SHA-256{other}"
            )
        self._rebuild(root.scripts() if file is None else ())

    def _rebuild(self, scripts: Iterable[str]) -> None:
        """Add files that are fastvsock's by their content but in no journal. RunCVM has no script `fastvsock`."""
        for name in {CONNECT, EXEC, UMBRELLA, *scripts}:
            path = self.root.real(name)
            if path in self.entries or self.root.kind(path) != "file":
                continue
            now = self.root.read(path)
            if now is not None and is_own(now):
                before = None if name == UMBRELLA else LOST
                self.entries[path] = {"before": before, "meta": None, "after": [mark(now)]}
                if name == CONNECT and becomes_binary(now.data):
                    self._rebuild_binary()

    def _rebuild_binary(self) -> None:
        """Add what the launcher starts. Without such a launcher, somebody else may have put the binary there."""
        for name in (PROGRAM, NAMED):
            path = self.root.place(name)
            now = self.root.content(path)
            if path not in self.entries and now is not None and (now == TARGET or is_own(now)):
                self.entries[path] = {"before": None, "meta": None, "after": [mark(now)]}

    def is_ours(self, path: str, now: Content) -> bool:
        """Whether `now`, the content of `path`, was put there by an install."""
        return path in self.entries and now is not None and mark(now) in self.entries[path]["after"]

    def is_original(self, path: str) -> bool:
        """Whether the original is at `path`, still or again."""
        now, entry = self.root.content(path), self.entries[path]
        if not isinstance(now, File):
            return entry["before"] is None and now == entry.get("link")
        return sha(now.data) == entry["before"] and now.meta == Meta(*entry["meta"])

    def is_lost(self, path: str) -> bool:
        """Whether the file at `path` is fastvsock's and its original is unknown."""
        lost = path in self.entries and self.entries[path]["before"] == LOST
        return lost and (is_own(now := self.root.content(path)) or self.is_ours(path, now))

    def lost(self, path: str) -> str:
        """The sentence for such a path."""
        backups = any(len(name) == 64 for name in self.root.names(BACKUP))
        where = f"{BACKUP}, where it is named by its SHA-256" if backups else "RunCVM's image"
        return f"{path} was installed by fastvsock and its original is lost: restore it from {where}"

    def original(self, path: str) -> Content:
        """What was at `path` before the first install. Raises `BundleError` if the backup is damaged."""
        entry = self.entries[path]
        if entry["before"] is None:
            link: str | None = entry.get("link")
            return link
        backup = self.root.read(f"{BACKUP}/{entry['before']}")
        if backup is None or sha(backup.data) != entry["before"]:
            raise BundleError(
                f"{self.root.path}/{path}: its backup is missing or damaged: restore it from RunCVM's image"
            )
        return File(backup.data, Meta(*entry["meta"]))

    def base(self, path: str) -> Content:
        """What an edit starts from: the original if the file there is ours, else the file there."""
        now = self.root.content(path)
        return self.original(path) if self.is_ours(path, now) and not self.is_lost(path) else now

    def entry(self, path: str, now: Content, after: Content) -> Entry | None:
        """The new journal's entry for `path`, which will hold `after`; None if nothing changes there."""
        entry, ours = self.entries.get(path), self.is_ours(path, now)
        if now != after and not (entry and (ours or is_own(now) or self.is_original(path))):
            entry = _entry(now)
        if entry is None:
            return None
        return {**entry, "after": [mark(after)]} if after is not None and (ours or now != after) else entry

    def joined(self, new: dict[str, Any]) -> dict[str, Any]:
        """The new journal during the change: the old content counts as ours too."""
        entries = {path: dict(entry) for path, entry in {**self.entries, **new["entries"]}.items()}
        for path, entry in entries.items():
            former = self.entries.get(path, {}).get("after", [])
            entry["after"] = [*entry["after"], *(mark for mark in former if mark not in entry["after"])]
        return {**new, "entries": entries}

    def cut(self, new: dict[str, Any], done: set[str], lost: str) -> dict[str, Any]:
        """The new journal after only the paths `done` were changed, because something else changed `lost`."""
        entries = self.joined(new)["entries"]
        ours = self.root.kind(lost) == "file" and is_own(self.root.read(lost))
        known = {path for path in self.entries if path != lost or ours}
        return {**new, "entries": {path: entry for path, entry in entries.items() if path in done | known}}

    def has_content(self, content: dict[str, Any]) -> bool:
        """Whether the journal and its copy have this content already."""
        return all(holds(self.root, path, _data(content)) for path in (COPY, JOURNAL))

    def write(self, content: dict[str, Any]) -> None:
        """Replace the journal and its copy, unless they have this content already."""
        for path in (COPY, JOURNAL):
            if not holds(self.root, path, _data(content)):
                self.root.write(path, _data(content), Meta(0o644, os.geteuid(), os.getegid()))


def is_own(content: Content) -> bool:
    """Whether a file is fastvsock's by its content: a launcher, the binary, or an exec script with the edit in it."""
    return isinstance(content, File) and (
        is_launcher(content.data)
        or is_binary(content.data)
        or re.search(rf"(?m)^[ \t]*{script_edits.MARK}".encode(), content.data) is not None
    )


def holds(root: Root, path: str, data: bytes) -> bool:
    """Whether `path` is a file with this content."""
    file = root.read(path)
    return file is not None and file.data == data


def mark(content: File | str) -> str:
    """What identifies a content in the journal."""
    return content if isinstance(content, str) else sha(content.data)


def sha(data: bytes) -> str:
    """The name of a backup."""
    return hashlib.sha256(data).hexdigest()


def _data(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"


def _entry(now: Content) -> Entry:
    if isinstance(now, File):
        return {"before": sha(now.data), "meta": [now.meta.mode, now.meta.uid, now.meta.gid], "after": []}
    return {"before": None, "meta": None, "after": [], **({} if now is None else {"link": now})}


def _is_entry(entry: Entry) -> bool:
    """Whether an entry of the journal has the right shape. May raise `TypeError` or `KeyError` instead."""
    before, after, meta = entry["before"], entry["after"], entry["meta"] or [0, 0, 0]
    numbers = len(meta) == 3 and all(isinstance(number, int) for number in meta)
    texts = [entry.get("link") or "", *after]
    known = before in (None, LOST) or (entry["meta"] is not None and re.fullmatch("[0-9a-f]{64}", before))
    return bool(known) and numbers and all(isinstance(text, str) for text in texts) and isinstance(after, list)
