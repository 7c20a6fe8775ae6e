"""Small files, whose content comes with their entry: whole under their names in as few system calls as that takes."""

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .entries import Entry

FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def create(folder: int, temporary: bytes, entry: "Entry", *, is_ours: bool) -> int:
    """Open a new file in the descriptor `folder`. Raises `OSError`.

    It has its mode from the beginning as far as that gives nobody more than the end will: nothing where it is to be
    somebody else's, and to its group, which the folder may choose, no more than to everybody.
    """
    mode = entry.mode & (0o707 | (entry.mode & 0o7) << 3) if is_ours else 0o600
    return os.open(temporary, FLAGS, mode, dir_fd=folder)


def fill(fd: int, entry: "Entry", content: memoryview, owner: bool) -> None:
    """Write the content, and set those attributes that are not right already. Raises `OSError`.

    To look costs a tenth of what setting does, which takes the inode's lock and a place in the journal. The umask, the
    folder's setgid bit and its default ACL have had their say by then. A new owner ends setuid, so the mode is last.
    """
    there = os.fstat(fd)
    while content:
        content = content[os.write(fd, content) :]
    if owner and (there.st_uid, there.st_gid) != (entry.uid, entry.gid):
        os.fchown(fd, entry.uid, entry.gid)
    mode = entry.mode if owner else entry.mode & 0o777
    if stat.S_IMODE(there.st_mode) != mode:
        os.fchmod(fd, mode)
    os.utime(fd, ns=(entry.mtime, entry.mtime))
