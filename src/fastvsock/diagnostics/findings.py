"""A finding of `fastvsock doctor` or `fastvsock runcvm check`: ok, a warning or a failure, and what to do about it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError

OK, WARNING, FAILED = "ok", "warning", "failed"
REINSTALL = "reinstall the RunCVM bundle"


@dataclass(frozen=True)
class Finding:
    """What was checked, the state it is in, and what to do, which is empty where the state is `OK`."""

    check: str
    state: str
    text: str
    advice: str = ""


def looked(name: str, look: Callable[..., Finding], *arguments: Any) -> Finding:
    """The finding of `look`. An exception becomes a finding too, since the other checks are still worth having."""
    try:
        return look(*arguments)
    except BundleError as error:
        return Finding(name, FAILED, str(error), REINSTALL)
    except Exception as error:
        if os.environ.get("FASTVSOCK_DEBUG") == "1":
            raise
        text = f"cannot be checked: {type(error).__name__}: {error}"
        return Finding(name, FAILED, text, "check it by hand (FASTVSOCK_DEBUG=1 shows where the check failed)")
