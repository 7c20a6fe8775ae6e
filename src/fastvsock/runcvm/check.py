"""Diagnoses a RunCVM bundle: each finding is ok, a warning or a failure, and says what to do.

kubectl cp fails with "required file not found" if tar is missing in the bundle or in the aliases; its --retries needs
sh and tail in the same way.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

from ..diagnostics.findings import FAILED, OK, REINSTALL, WARNING, Finding, looked
from ..diagnostics.machine import engine_finding, python_finding
from ..diagnostics.uds import ask_agent, no_agent
from ..errors import BundleError, ConnectError, FastvsockError
from . import guest_init, script_edits
from .binary import PROGRAM, is_binary
from .bundle import ADD_PYTHON, DEFAULTS, EXEC, Bundle, run
from .bundle_files import Root
from .elf import build_of
from .install import AGENT_BY_HAND, APPLETS
from .launchers import CONNECT, UMBRELLA, becomes_binary, is_launcher
from .payload import HOME

# Each program's arguments and input for a trial. Two blocks of zeros are an empty archive.
TRIALS: dict[str, tuple[list[str], bytes]] = {
    "tar": (["-t", "-f", "-"], bytes(1024)),
    "sh": (["-c", "exit 0"], b""),
    "tail": (["-c+2"], b"data"),
}
INSTALL = "run: fastvsock runcvm install"
OTHER_RELEASE = "if exec or cp fails: run fastvsock runcvm install, and start the VM again, which then has its agent"
LISTED = f"{', '.join(APPLETS[:-1])} and {APPLETS[-1]}"

ENGINE = """
import sys
sys.path.insert(0, sys.argv[1])
import fastvsock.engines
try:
    from fastvsock.engines import _splice
except ImportError as error:
    print(error)
"""


def check_bundle(root: Root) -> Iterator[Finding]:
    """The bundle: what kubectl cp needs, the aliases, the exec script, the launcher, and what that starts."""
    bundle = Bundle(root)
    yield Finding("bundle", OK, f"{root.path}: its programs are run by this check, as user {os.geteuid()}")
    yield looked("linker", _linker, bundle)
    for applet in APPLETS:
        yield looked(applet, _applet, bundle, applet)
    runner = (_binary,) if _has_binary(bundle) else (_bundle_python, _bundle_engine)
    for look in (_aliases, _exec, _guest_init, _launcher, *runner):
        yield looked(look.__name__.strip("_").replace("_", " "), look, bundle)


def no_bundle(error: BundleError) -> Finding:
    """The finding for a folder that is not a bundle."""
    return Finding("bundle", FAILED, str(error), "install RunCVM first, or pass its folder with --root")


def _linker(bundle: Bundle) -> Finding:
    if not bundle.has_linker:
        return Finding("linker", FAILED, "lib/ld is not there or not executable", REINSTALL)
    if bundle.foreign:
        return _untried("linker", "lib/ld", bundle)
    return Finding("linker", OK, f"lib/ld is there, for {bundle.build or 'an unknown machine'}")


def _untried(check: str, what: str, bundle: Bundle) -> Finding:
    """The finding for a program that is there but built for another machine."""
    text = f"{what} is there, built for {bundle.foreign}, and cannot be run here"
    return Finding(check, WARNING, text, f"run fastvsock runcvm check on a {bundle.foreign} machine")


def _applet(bundle: Bundle, name: str) -> Finding:
    path = bundle.find(name)
    if not path:
        use = "kubectl cp" if name == "tar" else "kubectl cp --retries"
        return Finding(name, FAILED, f"no {name} in the bundle: {use} cannot work", f"{INSTALL}, which links busybox")
    arguments, data = TRIALS[name]
    ran = bundle.run(path, *arguments, data=data)
    through = "through lib/ld" if bundle.has_linker else "without lib/ld"
    if ran.wrong and bundle.foreign:
        return _untried(name, path, bundle)
    if ran.wrong:
        text = f"{path} does not run {through}: {ran.wrong}"
        return Finding(name, FAILED, text, f"link bin/{name} to a busybox that has {name}")
    return Finding(name, OK, f"{path} runs {through}")


def _aliases(bundle: Bundle) -> Finding:
    text = _script(bundle, DEFAULTS)
    try:
        missing = [name for name in APPLETS if script_edits.add_aliases(text, [name]) != text]
    except script_edits.Unknown as error:
        advice = f"make sure that it defines functions for {LISTED} that run them through lib/ld"
        return Finding("aliases", WARNING, f"the shape of {DEFAULTS} is unknown: {error}", advice)
    if missing:
        text = f"missing in the word list of create_aliases() in {DEFAULTS}: {', '.join(missing)}"
        return Finding("aliases", FAILED, text, INSTALL)
    return Finding("aliases", OK, f"{LISTED} are in the word list of create_aliases()")


def _exec(bundle: Bundle) -> Finding:
    text = _script(bundle, EXEC)
    try:
        done = script_edits.end_proxy(text) == text
    except script_edits.Unknown as error:
        advice = "make sure that each exec has a transport of its own: dbclient -J, and no port"
        return Finding("exec", WARNING, f"the shape of {EXEC} is unknown: {error}", advice)
    if done and "--or-else" in text:
        return Finding("exec", OK, f"{EXEC} uses a channel to the guest's agent, and dbclient where none is reached")
    if done:
        return Finding("exec", OK, f"{EXEC} gives each dbclient a transport of its own")
    return Finding(
        "exec",
        FAILED,
        f"{EXEC} reaches the guest through a TCP port that others can take: exec and cp break each other",
        INSTALL,
    )


def _guest_init(bundle: Bundle) -> Finding:
    """The scripts that RunCVM starts in the guest."""
    name = "guest init"
    if not _has_binary(bundle):
        return Finding(name, OK, "no agent is started in the guest: that takes the static binary (install --binary)")
    texts = {path: _script(bundle, path) for path in bundle.root.scripts()}
    listening = {path: text for path, text in texts.items() if guest_init.starts_socat(text)}
    if not listening:
        text = "no script of the bundle starts socat on a vsock port of the guest, so none starts the agent there"
        return Finding(name, WARNING, text, AGENT_BY_HAND)
    without = {path: text for path, text in listening.items() if not guest_init.starts_agent(text)}
    for path, text in without.items():
        try:
            guest_init.start_agent(text)
        except script_edits.Unknown as error:
            return Finding(name, WARNING, f"{path} starts no agent in the guest: {error}", AGENT_BY_HAND)
    if without:
        return Finding(name, FAILED, f"{', '.join(without)}: starts no agent in the guest", INSTALL)
    return Finding(name, OK, f"{', '.join(listening)}: starts the agent in the guest, or socat where it does not run")


def check_agent(uds: str) -> Finding:
    """The agent in the guest behind `uds`. A VM that was started before the installation has none, or an older one."""
    try:
        found = ask_agent(uds)
        return found if found.state == OK else replace(found, advice=OTHER_RELEASE)
    except ConnectError as error:
        text = f"no agent is reached, so exec goes through dbclient: {error}"
        return Finding("agent", WARNING, text, "start the VM again, if it was started before the installation")
    except FastvsockError as error:
        return no_agent(error)


def _script(bundle: Bundle, path: str) -> str:
    file = bundle.root.read(path)
    if file is None:
        raise BundleError(f"{path} is not there: is this RunCVM with Firecracker?")
    return file.data.decode(errors="surrogateescape")


def _launcher(bundle: Bundle) -> Finding:
    """The transport's launcher, and the other one if the exec script starts it."""
    script = bundle.root.read(EXEC)
    proxied = script is not None and script_edits.uses_umbrella(script.data.decode(errors="replace"))
    said = []
    for path in (CONNECT, UMBRELLA) if proxied else (CONNECT,):
        file = bundle.root.read(path)
        if file is None:
            why = f", and {EXEC} starts it" if path == UMBRELLA else ""
            return Finding("launcher", FAILED, f"{path} is not there{why}", INSTALL)
        if not is_launcher(file.data):
            return Finding("launcher", FAILED, f"{path} is not fastvsock's: its first lines differ", INSTALL)
        wrong, version = ("", "") if bundle.foreign else _version(bundle, path)
        if wrong:
            return Finding("launcher", FAILED, f"{path} does not run {wrong}", INSTALL)
        said.append(f"{path} ({version})")
    if bundle.foreign:
        return _untried("launcher", CONNECT, bundle)
    ways = "directly and as python3 PATH" if _interpreter(bundle) else "directly"
    return Finding("launcher", OK, f"starts {ways}: {' and '.join(said)}")


def _version(bundle: Bundle, path: str) -> tuple[str, str]:
    """What is wrong with a launcher, started directly and by python3, and the version that it prints."""
    full, name = bundle.root.full(path), os.path.basename(path)
    said = ""
    python = _interpreter(bundle)
    for way, command in (("directly", [full]), *([("as python3 PATH", [*python, full])] if python else [])):
        ran = run([*command, "--version"])
        said = ran.out.strip()
        if ran.wrong or not said.startswith(f"{name} "):
            return f"{way}: {ran.wrong or repr(said)}", ""
    return "", said


def _interpreter(bundle: Bundle) -> list[str]:
    """The command line of the Python that can start the launcher; empty if there is none."""
    here = shutil.which("python3")
    return bundle.command(bundle.python) if bundle.python else [here] if here else []


def _has_binary(bundle: Bundle) -> bool:
    """Whether the bundle needs no Python: the launcher becomes the static binary, or did until RunCVM was upgraded."""
    try:
        launcher, program = bundle.root.read(CONNECT), bundle.root.read(PROGRAM)
    except BundleError:  # which the look at the launcher reports
        return False
    if launcher is not None and is_launcher(launcher.data):
        return becomes_binary(launcher.data)
    return program is not None and is_binary(program.data)


def _binary(bundle: Bundle) -> Finding:
    file = bundle.root.read(PROGRAM)
    build = build_of(file.data) if file else None
    wrong = ""
    if file is None:
        wrong = "is not there"
    elif build is None or not is_binary(file.data):
        wrong = "is not fastvsock's static binary"
    elif bundle.build and build.machine != bundle.build.machine:
        wrong = f"is for {build.machine}, the bundle for {bundle.build.machine}"
    if wrong:
        return Finding("binary", FAILED, f"{PROGRAM} {wrong}, and {CONNECT} starts it", INSTALL)
    if bundle.foreign:
        return _untried("binary", PROGRAM, bundle)
    ran = run([bundle.root.full(PROGRAM), "--version"])
    if ran.wrong:
        return Finding("binary", FAILED, f"{PROGRAM} does not run: {ran.wrong}", INSTALL)
    return Finding("binary", OK, f"{PROGRAM} runs, and needs no Python: {ran.out.strip()}")


def _bundle_python(bundle: Bundle) -> Finding:
    name = "bundle python"
    if bundle.python and bundle.foreign:
        return _untried(name, bundle.python, bundle)
    if bundle.python:
        return python_finding(bundle.run(bundle.python, "-V").out, bundle.python, name)
    here = shutil.which("python3")
    if here is None:
        return Finding(name, FAILED, f"{bundle.no_python}, and none in PATH", ADD_PYTHON)
    return Finding(name, WARNING, f"{bundle.no_python}: the launcher uses the one in PATH, here {here}", ADD_PYTHON)


def _bundle_engine(bundle: Bundle) -> Finding:
    file = bundle.root.read(CONNECT)
    site = next((f"{HOME}/{name}" for name in bundle.root.names(HOME) if file and name.encode() in file.data), "")
    if site and bundle.foreign:
        return _untried("bundle engine", site, bundle)
    ran = run([*_interpreter(bundle), "-IS", "-c", ENGINE, bundle.root.full(site)]) if site else None
    if ran is None or ran.wrong:
        why = f": {ran.wrong}" if ran else ""
        return Finding("bundle engine", FAILED, f"no fastvsock package in the bundle that can be loaded{why}", INSTALL)
    return engine_finding(ran.out.strip(), "bundle engine")
