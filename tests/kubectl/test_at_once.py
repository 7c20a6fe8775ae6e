"""Twenty of each at the same time, and one that is killed."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import started
from support.guests import until
from support.kubectl import Pod, inside, processes_about
from support.ways import WAYS

MANY = 20
LARGE = 4 << 30  # bytes, of a file with a hole: more than is copied before kubectl is killed
KILLED = [
    pytest.param(way, direction, id=f"{way.name}-{direction}")
    for way in WAYS
    for direction in ("there", "back")
    if direction == "there" or way.ends_unread
]


@pytest.mark.timeout(300)
def test_twenty_execs_and_twenty_copies_in_each_direction_do_not_meet(pod: Pod, tmp_path: Path) -> None:
    for folder in ("source", "guest", "back"):
        (tmp_path / folder).mkdir()
    payloads = [os.urandom(100_000 + number) for number in range(MANY)]
    for number, payload in enumerate(payloads):
        (tmp_path / f"source/{number}").write_bytes(payload)
        (tmp_path / f"guest/from{number}").write_bytes(payload)

    def execute(number: int) -> bool:
        return pod.echo(payloads[number], status=number) == payloads[number]

    def upload(number: int) -> bool:
        pod.copy(tmp_path / f"source/{number}", inside(tmp_path / f"guest/to{number}"))
        return (tmp_path / f"guest/to{number}").read_bytes() == payloads[number]

    def download(number: int) -> bool:
        pod.copy(inside(tmp_path / f"guest/from{number}"), tmp_path / f"back/{number}")
        return (tmp_path / f"back/{number}").read_bytes() == payloads[number]

    works: list[Callable[[int], bool]] = [execute, upload, download]
    with ThreadPoolExecutor(len(works) * MANY) as pool:
        results = [pool.submit(work, number) for number in range(MANY) for work in works]
    assert all(result.result() for result in results)


@pytest.mark.parametrize(("way", "direction"), KILLED, indirect=["way"], scope="session")
def test_a_copy_that_is_killed_leaves_nothing_running(pod: Pod, tmp_path: Path, direction: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.touch()
    os.truncate(source, LARGE)
    ends = (source, inside(target)) if direction == "there" else (inside(source), target)
    before = processes_about(pod.exec.root)
    with started(pod.kubectl("cp", *ends)) as child:
        until(lambda: target.exists() and target.stat().st_size > 1 << 20)
        assert child.poll() is None
        child.kill()
        until(lambda: processes_about(pod.exec.root, tmp_path) <= before)
    assert target.stat().st_size < LARGE
