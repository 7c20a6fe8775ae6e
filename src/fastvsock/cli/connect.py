"""`fastvsock connect UDS PORT`: the same code as `runcvm-vsock-connect`, under the umbrella command."""

from .. import runcvm_vsock_connect


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    return runcvm_vsock_connect.run(arguments, "fastvsock connect")
