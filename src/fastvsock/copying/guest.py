"""`Guest` with put and get: copies of files and trees, with a result that lists what became of every entry.

Copy there and back, and see that nothing is missing::

    guest = fastvsock.Guest("/run/firecracker.vsock")
    guest.put("site", "/srv/www")  # raises CopyError where something is not there
    result = guest.get("/srv/www/.", "back", resume=True, check=False)
    print(len(result.copied), "copied", len(result.skipped), "were there", *result.failed)
"""

import os
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

from .. import errors
from ..channels.guest import Guest as Commands
from .client import Copy
from .options import Options
from .result import Collection, CopyResult

Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress = Callable[[int, str], object]


class CopyOptions(TypedDict, total=False):
    """The options of a copy, which are those of `fastvsock cp`.

    By default a receiver that is root keeps owners, and with them setuid and setgid bits; ``owner=False`` leaves both
    out. `resume` skips files of the same size, time and, with `checksum`, digest; `checksum` alone compares copies.
    With `check`, the default, a copy that leaves something out raises `CopyError` in the end.
    `exclude` are patterns for names at any depth or, with a slash in front or inside, for paths from the source on.
    `user` (name or number, ``:group`` behind it perhaps) is who to be in the guest. `progress` is called with the bytes
    of content that have been moved, and the path of the entry that was copied last.
    """

    owner: bool
    follow: bool
    checksum: bool
    resume: bool
    dry_run: bool
    fsync: bool
    xattrs: bool
    keep_dirlinks: bool
    exclude: Sequence[Name]
    user: str | int | None
    progress: Progress | None
    check: bool


class Guest(Commands):
    """A guest with `fastvsock agent` in it, behind the VMM's Unix socket `uds`.

    `port` is the agent's AF_VSOCK port. `timeout` (seconds) bounds each attempt to connect, and the time to the agent's
    first answer; for `wait` (seconds) connecting is tried again while the guest boots. `engine` is ``auto``, ``splice``
    or ``copy``. An object of this class holds no connection: each call makes its own, from any thread.
    """

    def put(self, source: Name | Sequence[Name], target: Name, **options: Unpack[CopyOptions]) -> CopyResult:
        """Copy one path of this host, or several, to `target` in the guest, by the rules of `fastvsock cp`.

        What cannot be copied is left out, and the rest is copied. Raises `CopyError` then, a `FileNotFoundError` for
        instance, unless `check` is false: `failed` of the result says it too. Raises `StartError` where the target
        cannot be used, and what `run` raises for connections.
        """
        return Job(self._uds, self._how, options).put(source, target)

    def get(self, source: Name | Sequence[Name], target: Name, **options: Unpack[CopyOptions]) -> CopyResult:
        """Copy one path of the guest, or several, to `target` on this host, by the rules of `fastvsock cp`.

        What cannot be copied is left out, and the rest is copied. Nothing is written outside of `target`, whatever the
        guest sends; a `target` that is itself a link is followed. Raises `CopyError` as `put` does, `StreamError` where
        the target cannot be used, and what `run` raises for connections.
        """
        return Job(self._uds, self._how, options).get(source, target)


class Job(Collection):
    """One copy, and its result as it grows."""

    def __init__(self, uds: Name, how: dict[str, object], options: CopyOptions) -> None:
        super().__init__()
        given = dict(options)
        progress, user = options.get("progress"), options.get("user")
        self._check = options.get("check", True)
        for name in ("progress", "user", "check"):
            given.pop(name, None)
        if "exclude" in given:
            given["exclude"] = tuple(map(os.fsencode, options["exclude"]))
        self._progress: Progress = progress or (lambda content, path: None)
        self._last = ""
        who = "" if user is None else str(user)
        self._copy = Copy(uds, Options(**given), self, user=who, **how)  # type: ignore[arg-type]

    def put(self, source: Name | Sequence[Name], target: Name) -> CopyResult:
        """See `Guest.put`."""
        return self._run(lambda: self._copy.put(_names(source), os.fsencode(target)))

    def get(self, source: Name | Sequence[Name], target: Name) -> CopyResult:
        """See `Guest.get`."""
        return self._run(lambda: self._copy.get(_names(source), os.fsencode(target)))

    def _run(self, act: Callable[[], None]) -> CopyResult:
        try:
            act()
        finally:
            self._copy.close()
        if self._check and self.result.failed:
            raise errors.copy_error(self.result)
        return self.result

    def abandon(self) -> None:
        """Cut the connection, from another thread."""
        self._copy.abandon()

    def copied(self, path: bytes, size: int) -> None:
        """Add it to the result."""
        super().copied(path, size)
        self._last = self.result.copied[-1]

    def progress(self, content: int) -> None:
        """Pass it on."""
        self._progress(content, self._last)


def _names(source: Name | Sequence[Name]) -> list[bytes]:
    names = [source] if isinstance(source, (str, bytes, os.PathLike)) else list(source)
    if not names:
        raise ValueError("no source to copy")
    return list(map(os.fsencode, names))
