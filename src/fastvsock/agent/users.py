"""Who a command runs as: names or numbers, as `docker exec -u` has them."""

import os


class User:
    """A user to become. `home`, `name` and `shell` are of the password file, where it has the user."""

    def __init__(self, uid: int, gid: int, groups: list[int], name: str = "", home: str = "/", shell: str = "") -> None:
        self.uid, self.gid, self.groups = uid, gid, groups
        self.name, self.home, self.shell = name, home, shell

    @property
    def is_ours(self) -> bool:
        """Whether this process is that user already, groups included."""
        ours = os.getuid(), os.getgid(), set(os.getgroups()) | {self.gid}
        return ours == (self.uid, self.gid, set(self.groups) | {self.gid})


class UnknownNameError(Exception):
    """An unknown user or group: the arguments are ``user`` or ``group``, and its name."""


def find(wanted: bytes, groups: "list[bytes] | None") -> User:
    """The user that ``USER[:GROUP]`` means, with the supplementary `groups`, or those of the group file.

    An empty USER is this process' own. Raises `UnknownNameError`.
    """
    import pwd

    name, _, group = wanted.partition(b":")
    try:
        found = pwd.getpwnam(os.fsdecode(name)) if name else pwd.getpwuid(os.getuid())
        user = User(found.pw_uid, found.pw_gid, [], found.pw_name, found.pw_dir, found.pw_shell)
    except (KeyError, ValueError):
        user = _by_number(name)
    if group:
        user.gid = _group(group)
    if groups is None:
        user.groups = os.getgrouplist(user.name, user.gid) if user.name else [user.gid]
    else:
        user.groups = [_group(group) for group in groups]
    return user


def _by_number(name: bytes) -> User:
    import pwd

    uid = _number(name) if name else os.getuid()
    if uid is None:
        raise UnknownNameError("user", name)
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, 0 if name else os.getgid(), [])
    return User(uid, found.pw_gid, [], found.pw_name, found.pw_dir, found.pw_shell)


def _group(name: bytes) -> int:
    import grp

    try:
        return grp.getgrnam(os.fsdecode(name)).gr_gid
    except (KeyError, ValueError):
        gid = _number(name)
    if gid is None:
        raise UnknownNameError("group", name)
    return gid


def _number(text: bytes) -> "int | None":
    """A user's or group's number; -1, and so 2**32 - 1, means "leave it" to the kernel: setresuid(2)."""
    if not (text.isdigit() and len(text) <= 10 and int(text) < 0xFFFFFFFF):
        return None
    return int(text)
