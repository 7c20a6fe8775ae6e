"""`fastvsock doctor [UDS [PORT]]`: the troubleshooting, as a program."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import errors
from ..handshake import parse_port
from . import description

if TYPE_CHECKING:
    from ..diagnostics.findings import Finding

UDS = "/run/firecracker.vsock"


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="fastvsock doctor",
        description=f"{description('doctor')} Exit status: 0 unless something failed, then 1.",
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return report(look(options), options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `doctor` and `runcvm check` both take."""
    parser.add_argument("uds", metavar="UDS", nargs="?", help=f"the VMM's vsock socket (default {UDS}, if it is there)")
    parser.add_argument("port", metavar="PORT", nargs="?", help="a guest port, to try the handshake with")
    parser.add_argument("--json", action="store_true", help="the findings as a JSON array on stdout")


def look(options: argparse.Namespace) -> "list[Finding]":
    """The findings on this machine, and on the socket where one is given or found."""
    from ..diagnostics.machine import check_here
    from ..diagnostics.uds import check_uds, no_uds

    port = None if options.port is None else parse_port(options.port)
    if options.uds == "":
        raise errors.UsageError("UDS is empty: give the uds_path of a VMM's vsock device, or leave it out")
    uds = options.uds or (UDS if os.path.exists(UDS) else None)
    return [*check_here(), *(check_uds(uds, port) if uds else [no_uds(UDS)])]


def report(findings: "Sequence[Finding]", options: argparse.Namespace) -> int:
    """Print the findings and return the exit status."""
    if options.json:
        put(json.dumps([vars(finding) for finding in findings], indent=2) + "\n")
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            advice = f"{'':7}  {'':{width}}  -> {finding.advice}\n" if finding.advice else ""
            put(f"{finding.state:7}  {finding.check:{width}}  {finding.text}\n{advice}")
    return 1 if any(finding.state == "failed" for finding in findings) else 0


def put(text: str) -> None:
    """Print to stdout, and know whether that went well."""
    try:
        print(text.encode(errors="backslashreplace").decode(), end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise errors.FastvsockError(f"stdout: {os.strerror(error.errno or 0)}") from None
