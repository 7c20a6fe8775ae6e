"""What earlier installs did to a bundle: for each path what was there first, and what may be there of ours.

The journal is there twice, once beside the backups, since those are worth nothing without it: they are named by their
content. Whoever loses both still keeps what works: a file of fastvsock's is known by its own text, never becomes the
original of anything, and is never taken away where nobody knows what to put in its place.
"""

import hashlib
import json
import os
import re
from typing import Any

from ..errors import BundleError
from . import payload, script_edits
from .bundle import EXEC
from .bundle_files import Content, File, Meta, Root
from .payload import CONNECT, UMBRELLA

OURS = ".fastvsock"
JOURNAL = f"{OURS}/manifest.json"
BACKUP = f"{OURS}/backup"
COPY = f"{BACKUP}/manifest.json"
LOCK = f"{OURS}/lock"
FILES = re.compile(rf"{re.escape(OURS)}/(?:backup/)?(?:[0-9a-f]{{64}}|manifest\.json|\.[^/]+\.fastvsock-new)")
FORMAT = 1
LOST = "lost"  # in place of an original's SHA-256

Entry = dict[str, Any]


class Journal:
    """The journal of the bundle at `root`, as it is there. Raises `BundleError` where it cannot be understood."""

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
                f"{root.path}/{name}: cannot be understood: was it another version that installed? The originals are "
                f"in {BACKUP}, by their SHA-256{other}"
            )
        self._rebuild()

    def _rebuild(self) -> None:
        """Enter what is of fastvsock's by its text, and is in no journal. RunCVM itself has no script `fastvsock`."""
        for name in (CONNECT, EXEC, UMBRELLA):
            path = self.root.real(name)
            if path in self.entries or self.root.kind(path) != "file":
                continue
            now = self.root.read(path)
            if now is not None and is_own(now):
                before = None if name == UMBRELLA else LOST
                self.entries[path] = {"before": before, "meta": None, "after": [mark(now)]}

    def is_ours(self, path: str, now: Content) -> bool:
        """Whether an install put there what is at `path`."""
        return path in self.entries and now is not None and mark(now) in self.entries[path]["after"]

    def is_original(self, path: str) -> bool:
        """Whether the original is (still, or again) at `path`."""
        now, entry = self.root.content(path), self.entries[path]
        if not isinstance(now, File):
            return entry["before"] is None and now == entry.get("link")
        return sha(now.data) == entry["before"] and now.meta == Meta(*entry["meta"])

    def is_lost(self, path: str) -> bool:
        """Whether what is at `path` is of fastvsock's, and nobody knows what was there before."""
        lost = path in self.entries and self.entries[path]["before"] == LOST
        return lost and (is_own(now := self.root.content(path)) or self.is_ours(path, now))

    def lost(self, path: str) -> str:
        """What is to be said of such a path."""
        backups = any(len(name) == 64 for name in self.root.names(BACKUP))
        where = f"the originals are in {BACKUP}, by their SHA-256" if backups else "RunCVM's image has it"
        return f"{path} is fastvsock's, but its original is not known any more: put that there by hand: {where}"

    def original(self, path: str) -> Content:
        """What was at `path` before the first install. Raises `BundleError` where the backup is damaged."""
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
        """What an edit starts from: the original where what is there is ours, else what is there."""
        now = self.root.content(path)
        return self.original(path) if self.is_ours(path, now) and not self.is_lost(path) else now

    def entry(self, path: str, now: Content, after: Content) -> Entry | None:
        """What a new journal says of `path`, where `after` shall be; None for nothing: it was like this before."""
        entry, ours = self.entries.get(path), self.is_ours(path, now)
        if now != after and not (entry and (ours or is_own(now) or self.is_original(path))):
            entry = _entry(now)
        if entry is None:
            return None
        return {**entry, "after": [mark(after)]} if after is not None and (ours or now != after) else entry

    def joined(self, new: dict[str, Any]) -> dict[str, Any]:
        """The new journal while the change is under way: it knows the old content as ours as well."""
        entries = {path: dict(entry) for path, entry in {**self.entries, **new["entries"]}.items()}
        for path, entry in entries.items():
            former = self.entries.get(path, {}).get("after", [])
            entry["after"] = [*entry["after"], *(mark for mark in former if mark not in entry["after"])]
        return {**new, "entries": entries}

    def cut(self, new: dict[str, Any], done: set[str], lost: str) -> dict[str, Any]:
        """The new journal where only the changes of the paths `done` were made, since `lost` became another's."""
        entries = self.joined(new)["entries"]
        ours = self.root.kind(lost) == "file" and is_own(self.root.read(lost))
        known = {path for path in self.entries if path != lost or ours}
        return {**new, "entries": {path: entry for path, entry in entries.items() if path in done | known}}

    def says(self, content: dict[str, Any]) -> bool:
        """Whether the journal and its copy are this one already."""
        return all(holds(self.root, path, _data(content)) for path in (COPY, JOURNAL))

    def write(self, content: dict[str, Any]) -> None:
        """Replace the journal and its copy, where they are not this one already."""
        for path in (COPY, JOURNAL):
            if not holds(self.root, path, _data(content)):
                self.root.write(path, _data(content), Meta(0o644, os.geteuid(), os.getegid()))


def is_own(content: Content) -> bool:
    """Whether a file is of fastvsock's by its text: a launcher, or an exec script with the edit in it."""
    return isinstance(content, File) and (
        payload.is_launcher(content.data)
        or re.search(rf"(?m)^[ \t]*{script_edits.MARK}".encode(), content.data) is not None
    )


def holds(root: Root, path: str, data: bytes) -> bool:
    """Whether `path` is a file with this content."""
    file = root.read(path)
    return file is not None and file.data == data


def mark(content: File | str) -> str:
    """What the journal knows a content by."""
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
