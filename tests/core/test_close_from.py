"""A child that keeps nothing open of its parent's."""

import subprocess
import sys

import pytest

from support import HANG

CHILD = """
import os, sys
from fastvsock.stdio import close_from

def refuse(*numbers):
    raise FileNotFoundError

os.{without} = refuse
os.dup2(0, 900)
for _ in range(20):
    os.dup(0)
close_from(10)
print([number for number in range(1000) if os.path.exists(f"/dev/fd/{{number}}")])
"""


@pytest.mark.parametrize("without", ["closerange", "listdir"])
def test_descriptors_from_a_number_on_are_closed_whatever_they_are(without: str) -> None:
    """With no walk through all the numbers that there can be, and with it where there is no /proc to look at."""
    command = [sys.executable, "-c", CHILD.format(without=without)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.stdout, done.stderr) == (f"{list(range(10))}\n", "")
