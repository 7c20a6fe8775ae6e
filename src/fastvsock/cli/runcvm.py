"""`fastvsock runcvm`: RunCVM's integration."""

import argparse
import os
from typing import TYPE_CHECKING

from .. import errors
from ..stdio import log
from . import description, doctor
from .arguments import Parser, Seconds

if TYPE_CHECKING:
    from ..runcvm.changes import ChangeSet

ROOT = "/opt/runcvm"
LABEL = "runcvm=true"
RUNS = """\
Programs of the bundle are run as the current user to find out what works (lib/ld, busybox, bash, python3, tar, sh,
tail, the launchers), also by --dry-run and by check. Use a bundle only if you trust it that far.
"""
INSTALL = f"""\
Put fastvsock into a RunCVM bundle: the static binary bin/fastvsock, or the package, for which the bundle or the
container needs a Python; the launcher scripts/runcvm-vsock-connect, links to busybox for tar, sh and tail where they
are missing, these three in create_aliases(), and a transport of its own for each exec. With the binary, guests start
its agent, and each exec goes through a channel to the agent, or through dbclient where none is reached. The changes are
printed as a unified diff; the originals are kept in .fastvsock/ in the bundle. A script whose shape is unknown is left
as it is and reported on stderr.

{RUNS}
exit status: 0 all is installed; 1 something was left undone (the rest is installed) or nothing could be done at all.
"""
UNINSTALL = "Restore every file that install has changed, and remove what it has added. Runs no program of the bundle."
CHECK = f"""\
Diagnose common problems of a RunCVM bundle and of this machine, and suggest fixes. Where a VMM's socket is given or
found, the guest's agent is asked for its version, unless PORT names another port.

{RUNS}
exit status: 0 unless something failed, then 1; 2 for wrong usage.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def _parser() -> Parser:
    parser = Parser("fastvsock runcvm", usage="fastvsock runcvm COMMAND [options]", description=description("runcvm"))
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog="fastvsock runcvm")
    raw = argparse.RawDescriptionHelpFormatter
    usage = "fastvsock runcvm {} [options]"
    install = commands.add_parser(
        "install",
        usage=usage.format("install"),
        help="put fastvsock into a bundle",
        description=INSTALL,
        formatter_class=raw,
    )
    source = install.add_mutually_exclusive_group()
    source.add_argument(
        "--wheel",
        metavar="FILE",
        help="install the package or the static binary from this wheel (default: this installation, or this binary)",
    )
    source.add_argument(
        "--binary", metavar="FILE", help="install this static binary, which is for the bundle's architecture"
    )
    install.add_argument(
        "--proxy", action="store_true", help="start dbclient by 'fastvsock proxy', on a port of its own, not with -J"
    )
    install.set_defaults(run=_install)
    uninstall = commands.add_parser(
        "uninstall",
        usage=usage.format("uninstall"),
        help="restore every file that install has changed",
        description=UNINSTALL,
    )
    uninstall.add_argument("--force", action="store_true", help="restore even files that were changed since")
    uninstall.set_defaults(run=_uninstall)
    check = commands.add_parser(
        "check",
        usage=f"{usage.format('check')} [UDS [PORT]]",
        help="diagnose a bundle and this machine",
        description=CHECK,
        formatter_class=raw,
    )
    doctor.add_arguments(check)
    check.set_defaults(run=_check)
    for command in (install, uninstall, check):
        command.add_argument("--root", metavar="FOLDER", default=ROOT, help=f"the bundle (default {ROOT})")
    only_one = install.add_mutually_exclusive_group()
    only_one.add_argument(
        "--watch",
        type=Seconds(positive=True),
        metavar="SECONDS",
        help="stay, look every SECONDS whether files of the bundle were replaced, and install again; until SIGTERM",
    )
    only_one.add_argument(
        "--dry-run", action="store_true", help="show the changes and make none (programs of the bundle are still run)"
    )
    uninstall.add_argument("--dry-run", action="store_true", help="show the changes and make none")
    _add_manifest(commands.add_parser("manifest", help="print the Kubernetes DaemonSet that installs on every node"))
    return parser


def _add_manifest(manifest: Parser) -> None:
    manifest.usage = "fastvsock runcvm manifest [options] --image IMAGE"
    manifest.description = "Print, as JSON for kubectl apply -f -, a DaemonSet that installs on every node and watches."
    manifest.add_argument(
        "--image",
        metavar="IMAGE",
        required=True,
        help="an image with fastvsock in it, best pinned by its digest (NAME@sha256:…)",
    )
    manifest.add_argument(
        "--pause",
        metavar="IMAGE",
        help="install once, then run this image, which does nothing (default: watch, and install again after upgrades)",
    )
    manifest.add_argument("--root", metavar="FOLDER", default=ROOT, help=f"the bundle on the nodes (default {ROOT})")
    manifest.add_argument("--namespace", metavar="NAME", default="kube-system", help="(default kube-system)")
    manifest.add_argument(
        "--node-label",
        metavar="KEY=VALUE",
        help=f"the nodes that RuntimeClass runcvm schedules to: its scheduling.nodeSelector (default {LABEL})",
    )
    manifest.add_argument("--proxy", action="store_true", help="install --proxy")
    manifest.add_argument(
        "--wheel", metavar="FILE", help="install --wheel FILE, a file in IMAGE, for a bundle with another C library"
    )
    manifest.set_defaults(run=_manifest)


def _install(options: argparse.Namespace) -> int:
    from ..runcvm import binary, install, payload, watch

    files: payload.Package | binary.Binary
    if options.binary is not None:
        files = binary.from_file(options.binary)
    else:
        files = payload.itself() if options.wheel is None else payload.from_wheel(options.wheel)

    def install_once() -> "ChangeSet":
        with install.opened(options.root, lock=not options.dry_run) as root:
            changes = install.plan_install(root, files, proxy=options.proxy)
            _show(changes, options)
            if not options.dry_run:
                install.apply(root, changes)
        return changes

    if options.watch:
        watch.keep_installed(options.root, options.watch, install_once)
        return 0
    changes = install_once()
    _report(changes, options)
    return 1 if changes.undone else 0


def _uninstall(options: argparse.Namespace) -> int:
    from ..runcvm import install

    with install.opened(options.root, lock=not options.dry_run) as root:
        changes = install.plan_uninstall(root, force=options.force)
        if changes.undone:
            for text in changes.undone:
                log(text)
            return 1
        _show(changes, options)
        if not options.dry_run:
            install.undo(root, changes)
    _report(changes, options)
    return 0


def _check(options: argparse.Namespace) -> int:
    from ..diagnostics.findings import looked
    from ..runcvm import check, install

    try:
        with install.opened(options.root, lock=False) as root:
            findings = list(check.check_bundle(root))
    except errors.BundleError as error:
        findings = [check.no_bundle(error)]
    uds = doctor.socket_of(options)
    if uds and options.port is None:
        findings.append(looked("agent", check.check_agent, uds))
    return doctor.report([*findings, *doctor.look(options)], options)


def _manifest(options: argparse.Namespace) -> int:
    from ..runcvm import manifest

    label = LABEL if options.node_label is None else options.node_label
    settings = manifest.Settings(
        image=options.image,
        root=options.root,
        namespace=options.namespace,
        label=label,
        pause=options.pause,
        proxy=options.proxy,
        wheel=options.wheel,
    )
    settings.check()
    if "@sha256:" not in options.image:
        log(f"{options.image} is not pinned by a digest: anyone who can push that tag controls every node")
    if options.node_label is None:
        log(
            f"only nodes with the label {label} are installed on (kubectl label node NAME {label}): it must be the one "
            "in scheduling.nodeSelector of the RuntimeClass runcvm; --node-label sets another"
        )
    doctor.put(manifest.text(settings))
    return 0


def _show(changes: "ChangeSet", options: argparse.Namespace) -> None:
    """Show the changes. Where that fails none is made; of a dry run the reader may have seen enough."""
    try:
        doctor.put(changes.show())
    except (BrokenPipeError, errors.StreamError) as error:
        if not options.dry_run:
            reason = f"cannot write the output: {os.strerror(error.errno or 0)}"
            raise errors.FastvsockError(f"{reason}; the changes cannot be shown, so none was made") from None
        if not isinstance(error, BrokenPipeError):
            raise


def _report(changes: "ChangeSet", options: argparse.Namespace) -> None:
    """Print what an install or uninstall did, or would do, to stderr."""
    for text in changes.lines(options.root, dry_run=options.dry_run):
        log(text)
