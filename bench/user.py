"""Measuring as an ordinary user, to whom the limits apply that root does not have."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def acting_as(user: pwd.struct_passwd) -> Iterator[None]:
    """Act as `user` inside the block. Raises PermissionError unless this process is root's.

    The real user is changed too, since the pages of pipes are counted for it (fs/pipe.c, alloc_pipe_info()). Root stays
    the saved user, by which this process returns; programs that are started do not inherit it (execve(2)).
    """
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, 0)
    os.setresuid(user.pw_uid, user.pw_uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
