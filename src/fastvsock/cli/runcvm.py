"""`fastvsock runcvm`: RunCVM's integration."""

import argparse
from typing import TYPE_CHECKING

from .. import errors
from ..stdio import log
from . import description, doctor

if TYPE_CHECKING:
    from ..runcvm.install import Plan

ROOT = "/opt/runcvm"
LABEL = "runcvm=true"
INSTALL = """\
Put fastvsock into a RunCVM bundle: its package, the launcher scripts/runcvm-vsock-connect, bin/tar where there is
none, tar in create_aliases(), and a transport for each exec of its own. Changes are shown as a unified diff on stdout;
originals are kept in .fastvsock/ in the bundle. A script of unknown shape is left alone, and told on stderr.

exit status: 0 all is installed; 1 something was left undone (the rest is installed) or nothing could be done at all.
"""


def main(arguments: list[str]) -> int:
    """Run the subcommand and return the exit status."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastvsock runcvm", description=description("runcvm"))
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    install = commands.add_parser(
        "install", help="put fastvsock into a bundle", description=INSTALL, formatter_class=raw
    )
    install.add_argument(
        "--wheel", metavar="FILE", help="take the package from this wheel (default: this installation)"
    )
    install.add_argument(
        "--proxy", action="store_true", help="start dbclient by 'fastvsock proxy', on a port of its own, not with -J"
    )
    install.set_defaults(run=_install)
    uninstall = commands.add_parser("uninstall", help="restore every file that install has changed")
    uninstall.add_argument("--force", action="store_true", help="restore also files that were changed since")
    uninstall.set_defaults(run=_uninstall)
    check = commands.add_parser("check", help="look for what goes wrong in a bundle, and on this machine")
    doctor.add_arguments(check)
    check.set_defaults(run=_check)
    for command in (install, uninstall, check):
        command.add_argument("--root", metavar="FOLDER", default=ROOT, help=f"the bundle (default {ROOT})")
    for command in (install, uninstall):
        command.add_argument("--dry-run", action="store_true", help="show what would be changed, and change nothing")
    _add_manifest(commands.add_parser("manifest", help="print the Kubernetes DaemonSet that installs on every node"))
    return parser


def _add_manifest(manifest: argparse.ArgumentParser) -> None:
    manifest.add_argument(
        "--image",
        metavar="IMAGE",
        required=True,
        help="an image with fastvsock in it, best by its digest (NAME@sha256:…)",
    )
    manifest.add_argument("--pause", metavar="IMAGE", help="an image that does nothing (default: IMAGE, told to wait)")
    manifest.add_argument("--root", metavar="FOLDER", default=ROOT, help=f"the bundle on the nodes (default {ROOT})")
    manifest.add_argument("--namespace", metavar="NAME", default="kube-system", help="(default kube-system)")
    manifest.add_argument(
        "--node-label",
        metavar="KEY=VALUE",
        help=f"the nodes that RuntimeClass runcvm schedules to: its scheduling.nodeSelector (default {LABEL})",
    )
    manifest.add_argument("--proxy", action="store_true", help="install --proxy")
    manifest.add_argument(
        "--wheel", metavar="FILE", help="install --wheel FILE, a file in IMAGE: the bundle's libc may be another"
    )
    manifest.set_defaults(run=_manifest)


def _install(options: argparse.Namespace) -> int:
    from ..runcvm import install, payload

    files = payload.from_wheel(options.wheel) if options.wheel else payload.installed()
    with install.opened(options.root, lock=not options.dry_run) as root:
        plan = install.plan_install(root, files, proxy=options.proxy)
        _show(plan, options)
        if not options.dry_run:
            install.apply(root, plan)
    _tell(plan, options)
    return 1 if plan.undone else 0


def _uninstall(options: argparse.Namespace) -> int:
    from ..runcvm import install

    with install.opened(options.root, lock=not options.dry_run) as root:
        plan = install.plan_uninstall(root, force=options.force)
        if plan.undone:
            for text in plan.undone:
                log(text)
            return 1
        _show(plan, options)
        if not options.dry_run:
            install.undo(root, plan)
    _tell(plan, options)
    return 0


def _check(options: argparse.Namespace) -> int:
    from ..errors import BundleError
    from ..runcvm import check, install

    try:
        with install.opened(options.root, lock=False) as root:
            findings = list(check.check_bundle(root))
    except BundleError as error:
        findings = [check.no_bundle(error)]
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
        log(f"{options.image} is not fixed by a digest: who can push to its registry changes what every node runs")
    if options.node_label is None:
        log(
            f"for the nodes that have the label {label} (kubectl label node NAME {label}): it must be the one in "
            "scheduling.nodeSelector of the RuntimeClass runcvm; --node-label gives another"
        )
    doctor.put(manifest.text(manifest.objects(settings)))
    return 0


def _show(plan: "Plan", options: argparse.Namespace) -> None:
    """Show the changes. Where that fails none is made."""
    try:
        doctor.put(plan.show())
    except (BrokenPipeError, errors.FastvsockError) as error:
        if options.dry_run:
            raise
        reason = f"stdout: {error.strerror}" if isinstance(error, OSError) else error
        raise errors.FastvsockError(f"{reason}: the changes cannot be shown, so none was made") from None


def _tell(plan: "Plan", options: argparse.Namespace) -> None:
    for text in [*plan.notes, *plan.undone]:
        log(text)
    if not plan:
        log(f"{options.root}: nothing to do")
    elif options.dry_run:
        log(f"{options.root}: nothing was changed (--dry-run)")
    else:
        log(f"{options.root}: done, {len(plan.changes)} file{'s' * (len(plan.changes) != 1)} changed")
