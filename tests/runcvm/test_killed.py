"""An install or uninstall that is killed, at any step."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvsock.runcvm import bundle as bundle_module
from fastvsock.runcvm import install, payload
from fastvsock.runcvm.bundle import Ran
from support.bundles import make_bundle, snapshot
from support.installing import LAUNCHER

STEPS = ("rename", "symlink", "mkdir", "unlink", "rmdir")


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do `work` in a child that is killed just before its `step`-th change of a folder; whether it got so far."""
    child = os.fork()
    if child == 0:
        left = step

        def counting(change: Callable[..., None]) -> Callable[..., None]:
            def counted(*arguments: object, **options: object) -> None:
                nonlocal left
                left -= 1
                if not left:
                    os._exit(9)
                change(*arguments, **options)

            return counted

        for name in STEPS:
            setattr(os, name, counting(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


SMALL = payload.Package({"fastvsock/__init__.py": b'__version__ = "0.1.0"\n', "fastvsock/entry.py": b"#\n"}, "a test")
NEWER = payload.Package({**SMALL.files, "fastvsock/entry.py": b"# newer\n"}, "a test")


def install_now(bundle: Path, files: payload.Package, proxy: bool = False) -> None:
    """What `install` does, in this process."""
    with install.opened(str(bundle), lock=True) as root:
        install.apply(root, install.plan_install(root, files, proxy=proxy))


def uninstall_now(bundle: Path) -> None:
    """What `uninstall` does, in this process."""
    with install.opened(str(bundle), lock=True) as root:
        plan = install.plan_uninstall(root)
        assert not plan.undone
        install.undo(root, plan)


def work_of(bundle: Path) -> dict[str, object]:
    """What RunCVM uses of a bundle: all but our own folders and what a kill may have left beside a file."""
    found = snapshot(bundle)
    return {
        path: what
        for path, what in found.items()
        if not path.startswith((".fastvsock", "lib/fastvsock")) and not path.endswith("fastvsock-new")
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of the bundle are run once for all copies of it, and nothing waits for the disk."""
    results: dict[object, Ran] = {}
    real = bundle_module.run

    def once(command: list[str], data: bytes = b"") -> Ran:
        key = (*map(os.path.basename, command), data)
        if key not in results:
            results[key] = real(command, data)
        return results[key]

    monkeypatch.setattr(bundle_module, "run", once)
    monkeypatch.setattr(install, "run", once)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", ["install", "upgrade", "uninstall"])
def test_a_kill_at_any_step_leaves_each_file_old_or_new_and_can_be_taken_up_or_undone(
    tmp_path: Path, what: str
) -> None:
    original = make_bundle(tmp_path / "original")
    (original / "bin/bash").unlink()  # one program less to start for each step
    start, goal = tmp_path / "start", tmp_path / "goal"
    for copy in (start, goal):
        shutil.copytree(original, copy, symlinks=True, copy_function=os.link)
    if what != "install":
        install_now(start, SMALL, proxy=True)
    work: dict[str, Callable[[Path], None]] = {
        "install": lambda bundle: install_now(bundle, SMALL, proxy=True),
        "upgrade": lambda bundle: install_now(bundle, NEWER),
        "uninstall": uninstall_now,
    }
    if what != "uninstall":
        install_now(goal, SMALL if what == "install" else NEWER, proxy=what == "install")
    old, new, first = work_of(start), work_of(goal), work_of(original)
    step = 0
    while True:
        step += 1
        bundle = tmp_path / f"{step}"
        shutil.copytree(start, bundle, symlinks=True, copy_function=os.link)
        killed = killed_at(step, lambda bundle=bundle: work[what](bundle))  # type: ignore[misc]
        for path, content in work_of(bundle).items():
            assert content in (old.get(path), new.get(path)), f"{path} is half done at step {step}"
        names_its_package(bundle)
        again = tmp_path / f"{step} again"
        shutil.copytree(bundle, again, symlinks=True, copy_function=os.link)
        work[what](again)
        assert work_of(again) == new
        uninstall_now(bundle)
        assert snapshot(bundle) == snapshot(original)
        assert work_of(bundle) == first
        for done in (bundle, again):
            shutil.rmtree(done)
        if not killed:
            break
    assert step > 12


def names_its_package(bundle: Path) -> None:
    """Whatever launcher is there, the package that it names is whole."""
    for line in (bundle / LAUNCHER).read_text().splitlines():
        if line.startswith("sys.path.insert"):
            site = bundle / "scripts" / line.split('"/')[1].split('"')[0]
            assert {path.name for path in (site / "fastvsock").iterdir()} == {"__init__.py", "entry.py"}
