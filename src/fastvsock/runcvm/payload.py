"""What is put into a bundle: the package's files or the static binary, from this installation, a wheel or a file.

The package's engine is a shared object: built for another libc or machine than the bundle's it is left out, and the
copy engine is used. (A musl Python may load a glibc object without an error, and fail later.) The binary has its engine
linked in.
"""

import hashlib
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import BundleError
from . import binary
from .binary import Binary
from .bundle_files import MAX_FILE

HOME = "lib/fastvsock"
INIT = "fastvsock/__init__.py"
IS_STATIC = "__file__" not in globals()  # the modules in a static binary have no files
IN_STATIC_WHEEL = re.compile(r"fastvsock_static-[^/]+\.data/scripts/fastvsock")


@dataclass(frozen=True)
class Package:
    """The files of fastvsock by their paths (``fastvsock/relaying.py``), and where they came from."""

    files: dict[str, bytes]
    source: str

    def engine(self) -> str:
        """The path of the splice engine's shared object; empty if there is none."""
        return next((path for path in self.files if "/_splice." in path and path.endswith(".so")), "")

    def without(self, path: str) -> "Package":
        """The same package without one file."""
        return Package({name: data for name, data in self.files.items() if name != path}, self.source)

    def site(self) -> str:
        """The folder for exactly these files: another content has another folder, so an upgrade is one step."""
        digest = hashlib.sha256()
        for path, data in sorted(self.files.items()):
            digest.update(b"%s\0%d\0%s" % (path.encode(), len(data), data))
        return f"{HOME}/{self.version()}-{digest.hexdigest()[:12]}"

    def version(self) -> str:
        """The package's own version; empty if it is missing or may not be part of a folder's name."""
        found = re.search(rb"""^__version__\s*=\s*["']([0-9][\w.+!]*)["']""", self.files.get(INIT, b""), re.M)
        return found.group(1).decode(errors="replace") if found else ""


def itself() -> Package | Binary:
    """This fastvsock: the package that this code belongs to, or the static binary. Raises `BundleError`."""
    if IS_STATIC:
        return binary.itself()
    top = Path(__file__).parent.parent
    files = {
        f"fastvsock/{path.relative_to(top).as_posix()}": path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.suffix in (".py", ".so") and path.is_file()
    }
    return Package(files, "this installation")


def from_wheel(path: str) -> Package | Binary:
    """The package in a wheel, or the binary. Raises `BundleError` for a file that is not a wheel of fastvsock."""
    try:
        # zipfile's own default, named here since the static binary has those codecs alone that are named.
        with zipfile.ZipFile(path, metadata_encoding="cp437") as wheel:
            names = [name for name in wheel.namelist() if not name.endswith("/")]
            program = next(filter(IN_STATIC_WHEEL.fullmatch, names), "")
            ours = [name for name in names if name.startswith("fastvsock/") and name.endswith((".py", ".so"))]
            needed = [program] if program else ours
            _check_readable(path, [wheel.getinfo(name) for name in needed])
            files = {name: wheel.read(name) for name in needed}
    except BundleError:
        raise
    except Exception as error:  # zipfile passes on errors of zlib, struct and lzma, and RuntimeError
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise BundleError(f"{path}: cannot be read as a wheel: {reason}") from None
    if program:
        return binary.tried(binary.parsed(files[program], path))
    package = Package(files, os.path.basename(path))
    if any(".." in PurePosixPath(name).parts for name in files) or "fastvsock/entry.py" not in files:
        raise BundleError(f"{path}: not a wheel of fastvsock")
    if not package.version():
        raise BundleError(f"{path}: not a wheel of fastvsock: no valid version in {INIT}")
    return package


def _check_readable(path: str, members: list[zipfile.ZipInfo]) -> None:
    """Raise `BundleError` for members that are too large, or that the static binary, which has no zlib, cannot read."""
    if any(member.file_size > MAX_FILE for member in members):
        raise BundleError(f"{path}: not a wheel of fastvsock: it has a file of more than {MAX_FILE >> 20} MiB")
    if not IS_STATIC or all(member.compress_type == zipfile.ZIP_STORED for member in members):
        return
    if any(IN_STATIC_WHEEL.fullmatch(member.filename) for member in members):
        advice = "unzip it, and pass the fastvsock in its scripts with --binary"
    else:
        advice = "run this command from an installation of fastvsock"
    raise BundleError(f"{path}: it is compressed, and this fastvsock, one static executable, has no zlib: {advice}")
