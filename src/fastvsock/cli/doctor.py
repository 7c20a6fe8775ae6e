"""`fastvsock doctor [UDS [PORT]]`: diagnose common problems and suggest fixes."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import errors
from ..handshake import parse_port
from . import description
from .arguments import Parser

if TYPE_CHECKING:
    from ..diagnostics.findings import Finding

UDS = "/run/firecracker.vsock"


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    parser = Parser(
        "fastvsock doctor",
        usage="fastvsock doctor [options] [UDS [PORT]]",
        description=f"{description('doctor')} It connects to a VMM only if PORT is given. A bug report should contain "
        "the output of --json. Exit status: 1 if a check failed, 2 for wrong usage, else 0.",
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return report(look(options), options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `doctor` and `runcvm check` share."""
    parser.add_argument("uds", metavar="UDS", nargs="?", help=f"the VMM's vsock socket (default {UDS}, if it exists)")
    parser.add_argument(
        "port", metavar="PORT", nargs="?", help="a guest port to connect to, to try the handshake; 721 asks the agent"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON array, for programs")


def look(options: argparse.Namespace) -> "list[Finding]":
    """The findings on this machine, and on the socket where one is given or found."""
    from ..diagnostics.machine import check_here
    from ..diagnostics.uds import check_uds, no_uds

    port = None if options.port is None else parse_port(options.port)
    uds = socket_of(options)
    return [*check_here(), *(check_uds(uds, port) if uds else [no_uds(UDS)])]


def socket_of(options: argparse.Namespace) -> str | None:
    """The path of the VMM's socket, given or at its usual place; None if there is none."""
    if options.uds == "":
        raise errors.UsageError("UDS is empty: give the uds_path of a VMM's vsock device, or leave it out")
    return options.uds or (UDS if os.path.exists(UDS) else None)


def report(findings: "Sequence[Finding]", options: argparse.Namespace) -> int:
    """Print the findings and return the exit status, which stays the same where the reader has read enough."""
    try:
        _print(findings, options)
    except BrokenPipeError:
        pass
    return 1 if any(finding.state == "failed" for finding in findings) else 0


def _print(findings: "Sequence[Finding]", options: argparse.Namespace) -> None:
    if options.json:
        put(json.dumps([vars(finding) for finding in findings], indent=2) + "\n")
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            advice = f"{'':7}  {'':{width}}  -> {finding.advice}\n" if finding.advice else ""
            put(f"{finding.state:7}  {finding.check:{width}}  {finding.text}\n{advice}")


def put(text: str) -> None:
    """Print to stdout, where surrogates are escaped. Raises `StreamError`, and `BrokenPipeError` without a reader."""
    print(text.encode(errors="backslashreplace").decode(), end="", flush=True)
