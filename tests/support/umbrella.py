"""The umbrella command, as it is and with a part of it broken."""

import subprocess
from typing import Any

from support import HANG, called

# The command with `doctor` broken, which is how an error that nobody thought of looks.
BROKEN = """
import sys
from fastvsock import cli
from fastvsock.cli import doctor
def main(arguments): raise {error}
doctor.main = main
cli.main()
"""


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        [*called("fastvsock"), *arguments], stderr=subprocess.PIPE, timeout=HANG, check=False, **options
    )
