"""What a copy is asked to do besides copying, and how a request says it."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Options:
    """The options of `fastvsock cp`, which its help explains; `exclude` are patterns of fnmatch(3).

    `measure` has the sender find out how much content there is, for a receiver that shows it.
    """

    def __init__(
        self,
        *,
        owner: bool = True,
        follow: bool = False,
        checksum: bool = False,
        resume: bool = False,
        dry_run: bool = False,
        fsync: bool = False,
        xattrs: bool = False,
        keep_dirlinks: bool = False,
        measure: bool = False,
        exclude: tuple[bytes, ...] = (),
    ) -> None:
        self.owner, self.follow, self.checksum, self.resume = owner, follow, checksum, resume
        self.dry_run, self.fsync, self.xattrs, self.keep_dirlinks = dry_run, fsync, xattrs, keep_dirlinks
        self.measure, self.exclude = measure, exclude

    def encode(self) -> list[bytes]:
        """The options as ``NAME=VALUE``, for a request."""
        flags = [name.encode() + b"=" + (b"1" if on else b"0") for name, on in vars(self).items() if name != "exclude"]
        return flags + [b"exclude=" + pattern for pattern in self.exclude]

    @classmethod
    def parse(cls, words: "Iterable[bytes]") -> "Options":
        """The options of a request; names that this release does not know are ignored."""
        found = cls()
        for word in words:
            name, _, value = word.partition(b"=")
            if name == b"exclude":
                found.exclude += (value,)
            elif os.fsdecode(name) in vars(found):
                setattr(found, os.fsdecode(name), value == b"1")
        return found
