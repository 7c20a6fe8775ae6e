"""Keeps fastvsock installed in a bundle: an upgrade of RunCVM replaces its files, and they are edited again.

A look is a stat(2) of the files in the folders that an installation reads and writes. Only where one of them has
changed since a plan found nothing to do is another plan made, which reads files and runs programs of the bundle.
"""

import os
import signal
from collections.abc import Callable, Iterator

from ..errors import FastvsockError
from ..stdio import log
from .bundle import FOLDERS
from .changes import ChangeSet
from .journal import BACKUP, OURS
from .payload import HOME

WATCHED = ("lib", HOME, *FOLDERS, OURS, BACKUP)
ENDINGS = (signal.SIGTERM, signal.SIGINT)


def keep_installed(path: str, seconds: float, install_once: Callable[[], ChangeSet]) -> None:
    """Call `install_once`, and again within `seconds` of each change in the bundle at `path`, until SIGTERM or SIGINT.

    A signal ends it between two installations, never in the middle of one. What fails, and what is left undone, is
    logged once and tried again each time.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    settled: list[tuple[str, int, int]] | None = None
    logged: list[str] = []
    while True:
        found = list(_files(path))  # before the plan: what changes after it shows in the next look
        if found != settled:
            settled = None
            try:
                changes = install_once()
                lines = changes.lines(path)
                if not changes and not changes.undone:
                    settled = found
            except FastvsockError as error:
                lines = [str(error)]
            for line in lines:
                if line not in logged:
                    log(line)
            logged = lines
        if signal.sigtimedwait(ENDINGS, seconds):
            return


def _files(path: str) -> Iterator[tuple[str, int, int]]:
    """Name, inode and time of change of each watched file, links followed: another value means another file."""
    scripts = (folder for folder, _, _ in os.walk(f"{path}/scripts"))
    for folder in (*scripts, *(f"{path}/{name}" for name in WATCHED)):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            try:
                status = os.stat(f"{folder}/{name}")
            except OSError:  # a link that leads nowhere
                continue
            yield f"{folder}/{name}", status.st_ino, status.st_ctime_ns
