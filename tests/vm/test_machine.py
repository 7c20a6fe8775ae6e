"""The harness without QEMU: it boots again where a boot came to nothing, and never runs a command twice."""

import re
from pathlib import Path

import machine
import pytest

from support import HANG, ROOT

ENDS = "exit 0"  # as after a panic
RUNS = "echo l1 >>phase; echo l2 >>phase; echo ran >>output.log; echo 3 >status"
NO_GUEST = "echo l1 >>phase; echo nothing >>output.log; echo 70 >status"


@pytest.mark.parametrize(
    ("boots", "status", "count"),
    [
        ([RUNS], 3, 1),
        ([ENDS, RUNS], 3, 2),
        ([ENDS, ENDS, ENDS, RUNS], machine.BOOT_FAILED, 3),
        ([NO_GUEST, RUNS], 70, 1),
    ],
)
def test_a_boot_that_ends_before_the_guest_is_up_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boots: list[str], status: int, count: int
) -> None:
    made: list[str] = []

    def qemu_command(images: Path, out: Path) -> list[str]:
        made.append(boots[len(made)])
        return ["sh", "-c", f"cd {out}; {made[-1]}"]

    monkeypatch.setattr(machine, "qemu_command", qemu_command)
    assert machine.boot_and_run(tmp_path, tmp_path, HANG) == status
    assert len(made) == count


def test_the_tests_that_make_names_are_there() -> None:
    named = re.findall(r"(?<=\s)(tests/[\w/]+\.py)(?:::(\w+))?", (ROOT / "Makefile").read_text())
    assert len(named) > 20
    assert [test for test in named if f"\ndef {test[1]}" not in (ROOT / test[0]).read_text()] == []
