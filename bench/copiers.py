"""The ways to copy to the guest and from it, beside `fastvsock cp`: tar by each way of a command, scp, rsync, cat.

A copier brings `source`, a file or a folder, below the folder `target`, under its own name.
"""

import shlex
import shutil
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path

from .ways import Channels, CopyingChannels, Dropbear, HalfClosing, OpenSSH, Raw, StaticChannels, Way


class Copier(ABC):
    """A way to copy. `does` is which measures it can take: file, tree, and again for one that skips what is there."""

    name = title = ""
    does: tuple[str, ...] = ("file", "tree")
    way: type[Way]

    @classmethod
    def missing(cls) -> str:
        """Return what this machine lacks."""
        return cls.way.missing()

    @classmethod
    def version(cls) -> str:
        """What is measured, with its version."""
        return cls.way.version()

    @abstractmethod
    def up(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """The pipeline on the host that copies into the guest."""

    @abstractmethod
    def down(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """The pipeline on the host that copies from the guest."""

    def again(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """The pipeline that copies into the guest what has changed."""
        return self.up(way, source, target)


class Own(Copier):
    """`fastvsock cp`."""

    name, title = "cp-static", "fastvsock cp, static"
    way: type[Channels] = StaticChannels
    does = "file", "tree", "again"

    def up(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """To a path with a colon."""
        return [self._words(way, str(source), f":{target}")]

    def down(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """From a path with a colon."""
        return [self._words(way, f":{source}", str(target))]

    def again(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """With an option."""
        return [self._words(way, "--resume", str(source), f":{target}")]

    def _words(self, way: Way, *words: str) -> list[str]:
        assert isinstance(way, Channels)
        *options, source, target = words
        return [way.client, "cp", "--engine", way.engine, *options, way.uds, source, target]


class Installed(Own):
    """The same from the installation."""

    name, title = "cp", "fastvsock cp"
    way = Channels


class Copying(Own):
    """The same with the engine in Python."""

    name, title = "cp-copy", "fastvsock cp, copy"
    way = CopyingChannels


class Tar(Copier):
    """Two tars, with nothing but the forwarder between them: no status, and no word of what is missing."""

    name, title = "tar-raw", "tar, forwarder, tar"
    way: type[Way] = Raw

    def up(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """The first one here."""
        return [self._pack(source), way.command(*self._unpack(target), stdin=True)]

    def down(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """The first one in the guest."""
        return [way.command(*self._pack(source)), self._unpack(target)]

    def _pack(self, source: Path) -> list[str]:
        return ["tar", "-cf", "-", "-C", str(source.parent), source.name]

    def _unpack(self, target: Path) -> list[str]:
        return ["tar", "-xf", "-", "-C", str(target)]


class TarThroughChannels(Tar):
    """Two tars and `fastvsock exec`."""

    name, title = "tar-exec", "tar, fastvsock exec, tar"
    way = StaticChannels


class TarThroughDropbear(Tar):
    """Two tars and ssh, as `kubectl cp` in RunCVM."""

    name, title = "tar-dropbear", "tar, dbclient, tar"
    way = Dropbear


class Cat(Copier):
    """One file as it is: what a forwarder and the writing of the file take."""

    name, title, does = "cat-raw", "cat, forwarder, cat", ("file",)
    way = HalfClosing

    def up(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """The second one in the guest."""
        return [["cat", str(source)], way.command(*self._write(target / source.name), stdin=True)]

    def down(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """The second one here."""
        return [way.command("cat", str(source)), self._write(target / source.name)]

    def _write(self, path: Path) -> list[str]:
        return ["sh", "-c", f"exec cat > {shlex.quote(str(path))}"]


class Scp(Copier):
    """OpenSSH's own copy, which is sftp inside."""

    name, title = "scp", "scp"
    way = OpenSSH

    def up(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """To the host's name."""
        assert isinstance(way, OpenSSH)
        return [[*self._start(way), str(source), f"{way.host}:{target}/"]]

    def down(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """From the host's name."""
        assert isinstance(way, OpenSSH)
        return [[*self._start(way), f"{way.host}:{source}", f"{target}/"]]

    def _start(self, way: OpenSSH) -> list[str]:
        return ["scp", "-q", "-r", "-p", *way.options()]


class Rsync(Scp):
    """rsync through ssh."""

    name, title, does = "rsync", "rsync", ("file", "tree", "again")

    @classmethod
    def missing(cls) -> str:
        """Return what this machine lacks."""
        return super().missing() or ("" if shutil.which("rsync") else "rsync is not installed")

    @classmethod
    def version(cls) -> str:
        """The first line of what it says of its version."""
        done = subprocess.run(["rsync", "--version"], capture_output=True, text=True, timeout=9, check=False)
        return done.stdout.partition("\n")[0].strip()

    def _start(self, way: OpenSSH) -> list[str]:
        return ["rsync", "-a", "-e", shlex.join(["ssh", *way.options()])]


class Walk(Copier):
    """No copy: find looks at everything in the source, once."""

    name, title, does = "find", "find, the source alone", ("again",)
    way = Raw

    def up(self, way: Way, source: Path, target: Path) -> list[list[str]]:
        """Size and time of each, as a copy that skips has to know them."""
        return [["find", str(source), "-printf", "%s %T@ %p\\n"]]

    down = up  # both folders are on this machine


ALL = (
    Own(),
    Installed(),
    Copying(),
    Cat(),
    Tar(),
    TarThroughChannels(),
    TarThroughDropbear(),
    Scp(),
    Rsync(),
    Walk(),
)
