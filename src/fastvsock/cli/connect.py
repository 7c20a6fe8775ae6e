"""`fastvsock connect UDS PORT`: the same code as `runcvm-vsock-connect`, under the umbrella command."""

from .. import entry


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    return entry.run(arguments, "fastvsock connect")
