"""The README's examples, run as they stand there, in an empty folder, with each program that a user may have: this
environment's, that of the wheel in wheels/ in a new environment, and the static binary.

A line of a ```console block that begins with "$ " is a command of one shell session that runs through the whole page;
the lines under it are its output, stderr included, to the last byte. Where an output varies (a port, a list that is
not the point) the page has "…", which matches anything within a line. Blocks that need another machine are ```sh.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support import HANG, ROOT
from support.packages import SCRIPTS, run
from wheels.common import is_release, version
from wheels.static.package import COMMANDS, wheel_name

README = (ROOT / "README.md").read_text()
FOLDERS = (".github", "bench", "src", "tests", "wheels")
PAGES = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LARGEST = 7 * 1024  # bytes: a page that is read to its end
NOT_RUN = 3  # blocks of sh: installing, ssh with a server behind it, a RunCVM bundle at its usual place

# Reads commands from descriptor 3, so that a command that reads its stdin does not read the next one.
SHELL = 'while IFS= read -r -u 3 line; do eval "$line"; printf "%s\\n" "$DONE"; done'
DONE = "-- the command has ended --"


@dataclass
class Step:
    """A command of the README and the output that it shows for it."""

    command: str
    output: list[str] = field(default_factory=list)

    def matches(self, output: str) -> bool:
        """Whether `output` is what the README shows."""
        shown = "".join(f"{line}\n" for line in self.output)
        return re.fullmatch(re.escape(shown).replace("…", ".*"), output) is not None


class Session:
    """A shell, and what has come from it and not been compared yet."""

    def __init__(self, folder: Path, programs: Path) -> None:
        commands, self._commands = os.pipe()
        usual = {name: value for name, value in os.environ.items() if not name.startswith("FASTVSOCK_")}
        self._shell = subprocess.Popen(
            ["bash", "-c", f"exec 3<&{commands} {commands}<&-; {SHELL}"],
            cwd=folder,
            env={**usual, "PATH": f"{programs}:{os.environ['PATH']}", "DONE": DONE},
            pass_fds=[commands],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(commands)

    def output(self, step: Step) -> str:
        """Run a command, and return its output; that of a background command is waited for until it matches."""
        assert self._shell.stdout
        os.write(self._commands, f"{step.command}\n".encode())
        output, deadline = b"", time.monotonic() + HANG
        while True:
            text, done, more = output.decode(errors="replace").partition(f"{DONE}\n")
            if done and (step.matches(text + more) or not step.command.endswith("&")):
                return text + more
            if not select.select([self._shell.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                return f"{text}{more}(and nothing more in {HANG:.0f} s)"
            output += os.read(self._shell.stdout.fileno(), 1 << 16)

    def close(self) -> None:
        """End the shell and what it has left in the background."""
        os.close(self._commands)
        os.killpg(self._shell.pid, signal.SIGTERM)
        self._shell.communicate(timeout=HANG)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(README) if name == language]


def steps() -> Iterator[Step]:
    """The commands of all console blocks, in the order of the page."""
    for block in blocks("console"):
        step: Step | None = None
        for line in block.splitlines():
            if line.startswith("$ "):
                if step:
                    yield step
                step = Step(line[2:])
            else:
                assert step, f"a console block begins with a command, not with {line!r}"
                step.output.append(line)
        if step:
            yield step


def shipped_wheel(folder: Path) -> Path:
    """The commands of a new environment, into which pip has installed the wheel that it chooses from wheels/."""
    assert run(sys.executable, "-m", "venv", folder).returncode == 0
    installed = run(folder / "bin" / "pip", "install", "--no-index", "--find-links", ROOT / "wheels", "fastvsock")
    assert installed.returncode == 0, installed.stdout
    return folder / "bin"


def shipped_binary(folder: Path) -> Path:
    """A folder with the two commands from the static binary's wheel for this machine, and nothing else."""
    folder.mkdir()
    with zipfile.ZipFile(ROOT / "wheels" / wheel_name(os.uname().machine)) as archive:
        for command in COMMANDS:
            (name,) = [name for name in archive.namelist() if name.endswith(f"/scripts/{command}")]
            (folder / command).write_bytes(archive.read(name))
            (folder / command).chmod(0o755)
    return folder


PROGRAMS = {"environment": lambda folder: SCRIPTS, "wheel": shipped_wheel, "binary": shipped_binary}


@pytest.fixture(params=PROGRAMS)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands."""
    if request.param != "environment" and not is_release():
        pytest.skip(f"by design: {version()} is a development version, and wheels/ holds the last release")
    return PROGRAMS[request.param](tmp_path_factory.mktemp("programs") / "here")


@pytest.fixture
def session(programs: Path, tmp_path: Path) -> Iterator[Session]:
    shell = Session(tmp_path, programs)
    yield shell
    shell.close()


def test_every_example_gives_the_output_that_it_shows(session: Session, programs: Path, tmp_path: Path) -> None:
    todo = list(steps())
    assert len(todo) == README.count("\n$ ") >= 10, "a command stands outside of the console blocks"
    for step in todo:
        found = session.output(step)
        assert step.matches(found), f"$ {step.command}\ngives\n{found}\nand the README shows\n" + "\n".join(step.output)
    if (programs / "python").exists():  # the binary has no Python
        for code in blocks("python"):  # against the same emulator
            subprocess.run([programs / "python", "-c", code], cwd=tmp_path, timeout=HANG, check=True)


def test_few_blocks_are_not_run() -> None:
    assert {name for name, _ in BLOCK.findall(README)} == {"console", "python", "sh"}
    assert len(blocks("sh")) <= NOT_RUN


@pytest.mark.parametrize("block", blocks("sh"))
def test_the_commands_of_a_block_that_is_not_run_exist_with_these_options(block: str) -> None:
    for line in re.findall(r"^fastvsock .*", block, re.MULTILINE):
        words = line.partition("#")[0].partition(" -- ")[0].split()
        command = words[: 3 if words[1] == "runcvm" else 2]
        described = run(SCRIPTS / command[0], *command[1:], "--help")
        assert described.returncode == 0, described.stdout
        assert all(word in described.stdout for word in words if word.startswith("--"))


def test_the_page_is_short() -> None:
    assert len(README.encode()) <= LARGEST


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_wheels_that_are_named_are_there() -> None:
    names = re.findall(r"fastvsock-[\w.-]+\.whl", README)
    assert len(set(names)) >= 2
    assert not [name for name in names if not (ROOT / "wheels" / name).exists()]
