"""The SHA-256 of files. hashlib is a tenth of the start of a copy, so it is loaded for the first digest."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import hashlib

PIECE = 1 << 20  # bytes that are hashed at a time


def sha256(data: bytes = b"") -> "hashlib._Hash":
    """The beginning of a digest."""
    import hashlib

    return hashlib.sha256(data)


def file_digest(fd: int) -> bytes:
    """The SHA-256 of a file. Raises `OSError`."""
    found = sha256()
    piece = memoryview(bytearray(PIECE))
    offset = 0
    while count := os.preadv(fd, [piece], offset):
        found.update(piece[:count])
        offset += count
    return found.digest()
