"""A finding of `fastvsock doctor` or `fastvsock runcvm check`: ok, a warning or a failure, with what to do."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError

OK, WARNING, FAILED = "ok", "warning", "failed"
REINSTALL = "reinstall the RunCVM bundle"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and, unless it is well, what to do."""

    check: str
    state: str
    text: str
    advice: str = ""


def looked(name: str, look: Callable[..., Finding], *arguments: Any) -> Finding:
    """What a look finds. What it fails at is a finding too: the others are still worth having."""
    try:
        return look(*arguments)
    except BundleError as error:
        return Finding(name, FAILED, str(error), REINSTALL)
    except Exception as error:
        if os.environ.get("FASTVSOCK_DEBUG") == "1":
            raise
        text = f"cannot be looked at: {type(error).__name__}: {error}"
        return Finding(name, FAILED, text, "look by hand (FASTVSOCK_DEBUG=1 shows where it failed)")
