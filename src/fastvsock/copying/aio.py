"""`AsyncGuest` with put and get.

Copy from several guests at the same time::

    async def collect(sockets):
        guests = [fastvsock.AsyncGuest(uds) for uds in sockets]
        return await asyncio.gather(*(guest.get("/var/log", f"logs-{n}") for n, guest in enumerate(guests)))
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Unpack

from ..channels.aio import AsyncGuest as AsyncCommands
from .guest import CopyOptions, Job, Name
from .result import CopyResult


class AsyncGuest(AsyncCommands):
    """A guest with `fastvsock agent` in it, behind the VMM's Unix socket `uds`. The parameters are those of `Guest`."""

    async def put(self, source: Name | Sequence[Name], target: Name, **options: Unpack[CopyOptions]) -> CopyResult:
        """`Guest.put`. Cancelling it cuts the connection, which ends the copy."""
        job = Job(self._uds, self._how, _in_loop(options))
        return await _in_thread(job, lambda: job.put(source, target))

    async def get(self, source: Name | Sequence[Name], target: Name, **options: Unpack[CopyOptions]) -> CopyResult:
        """`Guest.get`. Cancelling it cuts the connection, which ends the copy."""
        job = Job(self._uds, self._how, _in_loop(options))
        return await _in_thread(job, lambda: job.get(source, target))


def _in_loop(options: CopyOptions) -> CopyOptions:
    """The options with a `progress` that is called in the loop's thread."""
    progress = options.get("progress")
    if progress is None:
        return options
    loop = asyncio.get_running_loop()
    return {**options, "progress": lambda content, path: loop.call_soon_threadsafe(progress, content, path)}


async def _in_thread(job: Job, act: Callable[[], CopyResult]) -> CopyResult:
    running = asyncio.ensure_future(asyncio.to_thread(act))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        job.abandon()
        await asyncio.wait([running])
        running.exception()  # what ended it is that it was cut
        raise
