"""Starts a command: in a session of its own, as the user and in the directory asked for, with nothing of ours.

The child is made with fork(2) and does what it has to with system calls alone, everything else being ready before. If
one of them fails, a pipe that execve(2) closes brings back which, and why.
"""

import errno
import fcntl
import os
import resource
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Sequence

    from .users import User
else:
    import _signal  # signal itself imports enum, and the agent stays in memory

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STAGES = ("terminal", "process", "user", "directory", "command")
ALL_SIGNALS = tuple(_signal.valid_signals())


class SpawnError(Exception):
    """The arguments are one of `STAGES`, and an errno."""


class Command:
    """What to start. `files` are the descriptors for 0, 1 and 2; `terminal` says that they are a pty."""

    def __init__(
        self,
        arguments: "list[bytes]",
        environment: "dict[bytes, bytes]",
        directory: bytes,
        user: "User | None",
        files: "Sequence[int]",
        terminal: bool,
        limit: tuple[int, int],
    ) -> None:
        self.arguments, self.environment, self.directory = arguments, environment, directory
        self.user, self.files, self.terminal, self.limit = user, files, terminal, limit

    @property
    def paths(self) -> "list[bytes]":
        """Where the program may be, in order."""
        name = self.arguments[0]
        if b"/" in name:
            return [name]
        folders = self.environment.get(b"PATH", DEFAULT_PATH).split(b":")
        return [os.path.join(folder or b".", name) for folder in folders] if name else []


def spawn(command: Command) -> int:
    """Start it and return its pid. Raises `SpawnError`, and `OSError` where no pipe can be opened."""
    paths = command.paths
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = os.fork()
        except OSError as error:
            raise SpawnError("process", error.errno) from None
        if not pid:
            _become(command, paths, write_end)
    finally:
        os.close(write_end)
    try:
        report = os.read(read_end, 16)
    finally:
        os.close(read_end)
    if report:
        os.waitpid(pid, 0)
        raise SpawnError(STAGES[report[0]], int.from_bytes(report[1:], "big"))
    return pid


def _become(command: Command, paths: "list[bytes]", report: int) -> None:
    """In the child: become the command, or report why not. Does not return."""
    stage = "process"
    number = errno.ENOENT
    try:
        os.setsid()
        if command.terminal:
            stage = "terminal"
            fcntl.ioctl(command.files[0], termios.TIOCSCTTY, 0)
            stage = "process"
        for target, fd in enumerate(command.files):
            os.dup2(fd, target)
        resource.setrlimit(resource.RLIMIT_NOFILE, command.limit)
        _reset_oom_score()
        for ignored in ALL_SIGNALS:  # the handlers go by themselves
            if _signal.getsignal(ignored) == _signal.SIG_IGN:
                _signal.signal(ignored, _signal.SIG_DFL)
        stage = "directory"
        entered = not command.directory or _enter(command.directory)
        if command.user:
            stage = "user"
            os.setgroups(command.user.groups)
            os.setgid(command.user.gid)
            os.setuid(command.user.uid)
        if not entered:
            stage = "directory"
            os.chdir(command.directory)
        stage = "command"
        for path in paths:
            try:
                os.execve(path, command.arguments, command.environment)
            except OSError as error:  # as execvp(3) goes on, and what it says at the end
                if error.errno not in (errno.ENOENT, errno.ENOTDIR) and number == errno.ENOENT:
                    number = error.errno or number
    except OSError as error:
        number = error.errno or errno.EIO
    finally:
        os.write(report, bytes((STAGES.index(stage),)) + number.to_bytes(4, "big"))
        os._exit(127)


def _enter(directory: bytes) -> bool:
    """Enter it as the agent may, as runc does; False where the command's user alone may, on a network's file system."""
    try:
        os.chdir(directory)
    except PermissionError:
        return False
    return True


def _reset_oom_score() -> None:
    """The agent may have been made hard to kill, its commands are not."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)
    except OSError:
        pass  # no /proc, or a container's floor is higher
