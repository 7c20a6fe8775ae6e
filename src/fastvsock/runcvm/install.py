"""Installs into a bundle, and undoes it; at no moment is a file half written.

First a plan is made, which changes nothing: the content that each file will have. It starts from the *original* of each
file, which the journal of an earlier install keeps, so a second install, one in the other form, and one that continues
after a kill all have the same result. Then, in this order: the originals are saved under their SHA-256; the journal
records what will be changed; the package is written into a folder of its own, named after its content, or the static
binary to its place; and only then is each file that uses it replaced, in one step. A kill in between leaves each file
either old or new; both work, and the journal knows both.

Right before each replacement the installer looks again: a file that differs from the plan's starting point, as
during an upgrade of RunCVM, is left alone, and the installation stops with an error.

What cannot be done is left undone and reported; the rest is still done.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from ..errors import BundleError, ChangedError, StreamError
from . import channel_edit, guest_init, launchers, script_edits, shell
from .binary import NAMED, PROGRAM, TARGET, Binary
from .bundle import ADD_PYTHON, DEFAULTS, EXEC, Bundle, run
from .bundle_files import SPARE, File, Meta, Root, may_own
from .changes import Change, ChangeSet, text_of
from .elf import build_of
from .journal import BACKUP, FILES, FORMAT, LOCK, LOST, OURS, Journal, holds, sha
from .launchers import CONNECT, UMBRELLA
from .payload import HOME, Package

# busybox's, for kubectl cp: it runs `tar`, and with --retries `sh -c "tar cf - PATH | tail -c+N"`.
APPLETS = ("tar", "sh", "tail")
COMPILING = 120.0  # seconds; one is enough, but a node may be busy, and without it each start compiles the package
# A file is replaced after those that it starts, and restored before them.
RANK = {PROGRAM: -2, NAMED: -1, DEFAULTS: 1, EXEC: 2}
SITE = re.compile(rf"{HOME}/[^/\s\"']+-[0-9a-f]{{12}}(?![0-9a-f])")
PACKAGE = re.compile(rf"{SITE.pattern}/fastvsock/(?:[^/]+/)*[^/]+\.(?:pyc?|so|fastvsock-new)")

BY_HAND = {
    DEFAULTS: f"by hand: add the words {' '.join(APPLETS)} to the list after 'for cmd in' in create_aliases()",
    EXEC: (
        "by hand: remove socat, its sleep and its trap, keep exec, and start dbclient by "
        f"/.runcvm/guest/{CONNECT} UDS PORT -- dbclient -J '&3' in place of -p"
    ),
}
AGENT_BY_HAND = (
    f"by hand: in place of socat start {guest_init.AGENT} --forward 22=127.0.0.1:22222, where that file can be run"
)


@contextmanager
def opened(path: str, *, lock: bool) -> Iterator[Root]:
    """The bundle at `path`, with `lock` for this process alone. Errors of the system are raised as `BundleError`."""
    with Root(path) as root:
        for folder in ("scripts", "lib"):
            if not root.kind(root.real(folder)) == "folder":
                raise BundleError(f"{path}: not a RunCVM bundle (it has no {folder}/): pass its folder with --root")
        try:
            with _locked(root) if lock else nullcontext():
                yield root
        except (BrokenPipeError, StreamError):  # of stdout, which is not the bundle's fault
            raise
        except OSError as error:
            raise BundleError(f"{path}: {error.filename or 'the bundle'}: {error.strerror}") from None


@contextmanager
def _locked(root: Root) -> Iterator[None]:
    """Hold the bundle's lock, and leave nothing of it behind where nothing is installed."""
    with root.locked(LOCK):
        try:
            yield
        finally:
            with suppress(BundleError, OSError):
                others = {*root.files(OURS)} - {LOCK}
                if not any(map(FILES.fullmatch, others)):
                    root.remove_tree(OURS, others)


def plan_install(root: Root, files: Package | Binary, *, proxy: bool = False) -> ChangeSet:
    """Plan the installation of `files`. Changes nothing."""
    return _Installation(root, files, proxy).plan


def plan_uninstall(root: Root, *, force: bool = False) -> ChangeSet:
    """Plan the restoration of the bundle. What would undo others' changes is reported as undone."""
    before, plan = Journal(root), ChangeSet()
    for path, entry in sorted(before.entries.items(), key=lambda item: (-RANK.get(item[0], 0), item[0])):
        if before.is_lost(path):
            plan.undone.append(before.lost(path))
        elif entry["before"] != LOST and not before.is_original(path):  # a lost one that is another now was put back
            now = root.content(path)
            if not before.is_ours(path, now) and now is not None and not force:
                plan.undone.append(f"{path} was changed since it was installed: save it, or pass --force")
            plan.changes.append(Change(path, now, before.original(path)))
    users = _users(root, plan)
    plan.notes += [f"{HOME} stays: {script} names it" for script in sorted({*users.values()})]
    _clear(root, plan, [OURS] if users else [HOME, OURS])
    _check_owners(root, plan)
    return plan


def _check_owners(root: Root, plan: ChangeSet) -> None:
    """Raise `BundleError` where a file cannot be given to its owner, before the first one is changed."""
    for change in plan.changes:
        if isinstance(change.after, File) and not may_own(meta := change.after.meta):
            raise BundleError(f"{root.no_owner(change.path, meta)}: nothing was changed: run as root with CAP_CHOWN")


def _users(root: Root, plan: ChangeSet) -> dict[str, str]:
    """The packages that scripts will name after the plan is carried out, each with the path of one such script."""
    after = {change.path: change.after for change in plan.changes}
    found = {}
    for name in root.names("scripts"):
        try:
            path = root.real(f"scripts/{name}")
            content = after[path] if path in after else root.read(path)
        except BundleError:  # a folder, or a link out of the bundle
            continue
        if name.endswith(SPARE):  # of a write that was killed
            continue
        for match in SITE.finditer(text_of(content.data)) if isinstance(content, File) else ():
            found[match.group()] = f"scripts/{name}"
    return found


def _clear(root: Root, plan: ChangeSet, folders: list[str]) -> None:
    """Plan to remove these folders, except for files that others put there."""
    for folder in folders:
        files = [path for path in root.files(folder) if path != LOCK]  # the lock goes last: see _locked()
        foreign = [path for path in files if not (PACKAGE.fullmatch(path) or FILES.fullmatch(path))]
        plan.notes += [f"{path} is not fastvsock's and stays" for path in foreign]
        plan.foreign |= set(foreign)
        if len(foreign) < len(files) or (not files and folder != OURS and root.kind(folder)):
            plan.stale.append(folder)


def apply(root: Root, plan: ChangeSet) -> None:
    """Carry out an install's plan."""
    if not plan:
        return
    journal = Journal(root)
    root.make_folder(BACKUP)
    for change in plan.changes:
        if isinstance(change.before, File) and change.path in plan.journal["entries"]:
            entry = plan.journal["entries"][change.path]
            if entry["before"] == sha(change.before.data):
                root.write(f"{BACKUP}/{entry['before']}", change.before.data, Meta(0o600, os.geteuid(), os.getegid()))
    journal.write(journal.joined(plan.journal))
    if plan.package:
        _put_package(root, plan.package)
    done: set[str] = set()
    try:
        _carry_out(root, plan, done)
    except ChangedError as error:  # whose file is now not ours to restore
        journal.write(journal.cut(plan.journal, done, error.path))
        raise
    journal.write(plan.journal)
    kept = [entry["before"] for entry in plan.journal["entries"].values()]
    for name in {entry["before"] for entry in journal.entries.values()} - {None, LOST, *kept}:
        root.remove(f"{BACKUP}/{name}")


def undo(root: Root, plan: ChangeSet) -> None:
    """Carry out an uninstall's plan."""
    _carry_out(root, plan, set())


def _carry_out(root: Root, plan: ChangeSet, done: set[str]) -> None:
    """Make the changes; `done` gets the path of each that was made. Raises `ChangedError`, which ends it."""
    for change in plan.changes:
        _carry_out_one(root, change)
        done.add(change.path)
    paths = (DEFAULTS, EXEC, CONNECT, UMBRELLA, PROGRAM, NAMED, *(f"bin/{applet}" for applet in APPLETS))
    for path in {*map(root.place, paths), *Journal(root).entries}:
        root.tidy(path)
    for path in plan.stale:
        root.remove_tree(path, {*plan.foreign, LOCK})


def _carry_out_one(root: Root, change: Change) -> None:
    """Make one change. Raises `ChangedError` if the path differs from the plan's starting point."""
    path, after = change.path, change.after

    def look_again() -> None:
        try:
            now = root.content(path)
        except BundleError:  # a folder, for instance
            raise ChangedError(root.path, path) from None
        if now not in (change.before, after):
            raise ChangedError(root.path, path)

    if isinstance(after, File):
        root.write(path, after.data, after.meta, look_again)
    elif after is not None:
        root.link(path, after, look_again)
    else:
        root.remove(path, look_again)


class _Installation:
    """Makes the plan of an install: the content that each path will have, then the changes that lead there."""

    def __init__(self, root: Root, files: Package | Binary, proxy: bool) -> None:
        self.root, self.bundle, self.before = root, Bundle(root), Journal(root)
        self.plan = ChangeSet(ran_programs=True)
        self._wanted: dict[str, File | str] = {}
        self._files = self._checked(files) if isinstance(files, Binary) else self._fitting(files)
        self._edit(DEFAULTS, lambda text: script_edits.add_aliases(text, APPLETS), BY_HAND[DEFAULTS])
        self._edit(EXEC, lambda text: self._edited_exec(text, proxy), BY_HAND[EXEC])
        if isinstance(self._files, Binary):
            self._wanted[root.place(PROGRAM)] = File(self._files.data, _new(root))
            self._wanted[root.place(NAMED)] = TARGET
            self._start_agent()
        else:
            self._python()
        self._launch(CONNECT)
        script = self._wanted.get(root.real(EXEC))
        if isinstance(script, File) and script_edits.uses_umbrella(text_of(script.data)):
            self._launch(UMBRELLA)
        for applet in APPLETS:
            self._link(applet)
        self._settle()
        self._place()

    def _note(self, text: str) -> None:
        self.plan.notes.append(text)

    def _checked(self, binary: Binary) -> Binary:
        """The same binary. Raises `BundleError` if it is for another machine than the bundle."""
        home = self.bundle.build
        if home is None:
            self._note(f"cannot determine the architecture of lib/ld, so {binary.source} may not run")
        elif home.machine != binary.machine:
            raise BundleError(
                f"{binary.source}: it is for {binary.machine}, and the bundle {self.root.path} is for {home.machine}: "
                f"pass the binary for {home.machine} with --binary"
            )
        return binary

    def _fitting(self, files: Package) -> Package:
        """The package without an engine that would not run in the bundle."""
        engine, home = files.engine(), self.bundle.build
        if not engine:
            self._note(
                f"{files.source} has no splice engine, so the copy engine will be used; a wheel for the bundle has one"
            )
            return files
        build = build_of(files.files[engine])
        if home is None or build is None:
            self._note("cannot determine the architecture of lib/ld, so the splice engine may not load")
            return files
        if build.fits(home):
            return files
        self._note(
            f"the splice engine of {files.source} is for {build}, the bundle is {home}: it is left out, and the copy "
            f"engine will be used; pass the wheel for {home} (musllinux or manylinux) with --wheel"
        )
        return files.without(engine)

    def _edit(self, name: str, edit: Callable[[str], str], by_hand: str, *, flawed: bool = False) -> None:
        """Plan the edit of the script `name`; or leave it as it is, possibly by an earlier install, and report that.

        A `flawed` script may have had a syntax error before: one that its shell never comes to.
        """
        path = self.root.real(name)
        original = self.before.base(path)
        if not isinstance(original, File):
            self.plan.undone.append(f"{name} is not there: is this RunCVM with Firecracker?")
            return
        data, wrong = b"", ""
        try:
            data = edit(text_of(original.data)).encode(errors="surrogateescape")
            wrong = "" if data == original.data else self._syntax_error(text_of(original.data), text_of(data), flawed)
        except script_edits.Unknown as error:
            wrong = str(error)
        if not wrong:
            self._wanted[path] = File(data, original.meta)
            return
        self.plan.undone.append(f"{name} is left alone: {wrong}; {by_hand}")
        now = self.root.content(path)
        if now is not None and self.before.is_ours(path, now):
            self._wanted[path] = now

    def _edited_exec(self, text: str, proxy: bool) -> str:
        """The exec script's text. Raises `Unknown`."""
        if not isinstance(self._files, Binary):
            return script_edits.end_proxy(text, proxy, self._guest_ports())
        edited = script_edits.end_proxy(text, proxy, self._guest_ports(), binary=True)
        try:
            return channel_edit.use_channel(edited)
        except script_edits.Unknown as error:
            self._note(f"{EXEC} goes through dbclient only, and not through a channel to the guest's agent: {error}")
            return edited

    def _scripts(self) -> Iterator[tuple[str, str]]:
        """Path and text of each script, as they were before the first install."""
        for path in self.root.scripts():
            content = self.before.base(path)
            if isinstance(content, File):
                yield path, text_of(content.data)

    def _guest_ports(self) -> set[str]:
        """Where the guest listens, by what the bundle's scripts start in it."""
        return guest_init.guest_ports(text for _, text in self._scripts())

    def _start_agent(self) -> None:
        """Plan that the scripts which start socat in the guest start the agent in its place."""
        paths = [path for path, text in self._scripts() if guest_init.starts_socat(text)]
        for path in paths:
            self._edit(path, guest_init.start_agent, AGENT_BY_HAND, flawed=True)
        if not paths:
            self._note(
                "no script of the bundle starts socat on a vsock port of the guest, so none starts the agent there: "
                f"{AGENT_BY_HAND}"
            )

    def _syntax_error(self, before: str, after: str, flawed: bool) -> str:
        """What `bash -n` finds wrong in an edited script or its here-documents; empty if nothing."""
        bash = self.bundle.bash
        if not bash:
            return "no bash was found, here or in the bundle, to check the edited script"
        for old, new in zip([before, *shell.documents(before)], [after, *shell.documents(after)], strict=False):
            found = "" if old == new else _complaint(bash, new)
            if found and not (flawed and re.sub(r"\d+", "", found) == re.sub(r"\d+", "", _complaint(bash, old))):
                return f"bash -n fails on the edited script ({found})"
        return ""

    def _python(self) -> None:
        """Report which Python will run the launchers, if that is not a working one of the bundle."""
        bundle = self.bundle
        if bundle.late_python:  # this machine may only be busy now
            self.plan.undone.append(
                f"{bundle.no_python}: the launcher is made without it and uses python3 from PATH: install again"
            )
        if not bundle.python:
            self._note(f"{bundle.no_python}: the launcher uses python3 from PATH; {ADD_PYTHON}")
        elif bundle.foreign:
            self._note(f"the bundle is built for {bundle.foreign}, and its {bundle.python} cannot be tried here")

    def _launch(self, name: str) -> None:
        """Plan a launcher."""
        path = self.root.real(name)
        files, bundle = self._files, self.bundle
        if isinstance(files, Binary):
            data = launchers.by_binary(path, files.version)
        else:
            data = launchers.by_python(path, files.site(), files.version(), bundle.python, bundle.has_linker)
        original = self.before.base(path)
        # So far it may have been run as `python3 PATH` only, without being executable.
        meta = (
            replace(original.meta, mode=original.meta.mode | 0o111) if isinstance(original, File) else _new(self.root)
        )
        self._wanted[path] = File(data, meta)

    def _link(self, applet: str) -> None:
        """Plan the link to busybox for `applet`, if the bundle has no such program."""
        name = f"bin/{applet}"
        path, found = self.root.place(name), self.bundle.find(applet)
        ours = self.before.is_ours(path, self.root.content(path))
        if found and not ours:
            try:
                self.root.real(found)
            except BundleError as error:
                self.plan.undone.append(
                    f"{error}; kubectl cp will not work: by hand: link it to a busybox with {applet}"
                )
            return
        applets, why = self.bundle.applets
        if (ours and found) or (applets and applet in applets):
            self._wanted[path] = "busybox"
            if why and not ours and why not in self.plan.notes:
                self._note(why)
            return
        reason = why if applets is None else f"the bundle's busybox has no applet {applet}"
        self.plan.undone.append(
            f"{name} is not made: {reason}; by hand: put a {applet} that runs through lib/ld into bin/"
        )

    def _settle(self) -> None:
        """Derive the changes and the journal. What only an earlier install needed is restored."""
        before, changes, entries = self.before, self.plan.changes, {}
        for path, after in self._wanted.items():
            now = self.root.content(path)
            if now != after:
                changes.append(Change(path, now, after))
            entry = before.entry(path, now, after)
            if entry is not None:
                entries[path] = entry
            if before.is_lost(path):
                self._note(before.lost(path))
        changes.sort(key=lambda change: RANK.get(change.path, 0))
        for path, former in before.entries.items():
            if path in self._wanted or before.is_original(path):
                continue
            now = self.root.content(path)
            if before.is_ours(path, now) and not before.is_lost(path):
                changes.append(Change(path, now, before.original(path)))
            else:
                entries[path] = former
        self.plan.journal = {"format": FORMAT, "entries": entries}

    def _place(self) -> None:
        """Plan the package's folder. The previous one stays until the next install: it may be in use."""
        root, files, site = self.root, self._files, ""
        if isinstance(files, Package):
            site = files.site()
            self.plan.package = None if self._is_placed(files) else files
        former = self.before.former if self.before.site == site else self.before.site
        used = {site, former, *_users(root, self.plan)}
        others = [path for name in root.names(HOME) if SITE.fullmatch(path := f"{HOME}/{name}") and path not in used]
        _clear(root, self.plan, others)
        self.plan.journal |= {"site": site, "former": former}
        _check_owners(root, self.plan)
        self.plan.unsaved = not self.before.has_content(self.plan.journal)

    def _is_placed(self, files: Package) -> bool:
        """Whether the package is in the bundle, whole and compiled."""
        root, site = self.root, files.site()
        complete = all(holds(root, f"{site}/{path}", data) for path, data in files.files.items())
        return complete and (
            not self.bundle.python or bool(self.bundle.foreign or root.names(f"{site}/fastvsock/__pycache__"))
        )


def _complaint(bash: list[str], text: str) -> str:
    """What `bash -n` says about a script; empty if nothing."""
    ran = run([*bash, "-n"], text.encode(errors="surrogateescape"))
    return ("; ".join(ran.err.split("\n")).strip("; ") or ran.wrong) if ran.wrong else ""


def _put_package(root: Root, files: Package) -> None:
    """Write the package, and its compiled form for the bundle's own Python: otherwise each start would compile it."""
    bundle, site = Bundle(root), files.site()
    compiled = _compiled(bundle, files)
    for path, data in {**files.files, **compiled}.items():
        target = f"{site}/{path}"
        if path in compiled or not holds(root, target, data):
            root.make_folder(os.path.dirname(target))
            root.write(target, data, Meta(0o644, os.geteuid(), os.getegid()))


def _compiled(bundle: Bundle, files: Package) -> dict[str, bytes]:
    if not bundle.python or bundle.foreign:
        return {}
    with tempfile.TemporaryDirectory(prefix="fastvsock-") as folder:
        for path, data in files.files.items():
            if path.endswith(".py"):
                place = Path(folder, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
        # Unchecked: the folder is named after the sources, so the two cannot differ.
        options = ["--invalidation-mode", "unchecked-hash", "-q", "-s", folder]
        bundle.run(bundle.python, "-IS", "-m", "compileall", *options, folder, seconds=COMPILING)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(Path(folder).rglob("*.pyc"))}


def _new(root: Root) -> Meta:
    """Mode and owner of a new file: the owner of the bundle's folder, where this process may set it."""
    status = os.stat(root.path)
    meta = Meta(0o755, status.st_uid, status.st_gid)
    return meta if may_own(meta) else replace(meta, uid=os.geteuid(), gid=os.getegid())
