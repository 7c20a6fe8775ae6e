"""The edit that has `runcvm-ctr-exec` use a channel: known shapes run by bash, unknown ones keep dbclient alone."""

from pathlib import Path

import pytest

from fastvsock.runcvm.channel_edit import use_channel
from fastvsock.runcvm.script_edits import Unknown, end_proxy
from support.bundles import RECORD, SHAPES, called, exec_script, fallback, make_bundle, put, runcvm
from support.installing import install_now, small

EXEC = "scripts/runcvm-ctr-exec"


def edited(script: str, proxy: bool = False) -> str:
    """A script as an install of the binary leaves it."""
    return use_channel(end_proxy(script, proxy, binary=True))


def words_of(script: str, folder: Path, *arguments: str, tr: bool = True, **variables: str) -> list[str]:
    """What a script calls `fastvsock` with, or what stands in its place. Without `tr` that one fails."""
    bundle = make_bundle(folder / "bundle")
    if not tr:
        put(bundle / "usr/bin/tr", "not for this machine", 0o755)
    put(bundle / EXEC, script, 0o755)
    for name in ("fastvsock", "runcvm-vsock-connect"):
        put(bundle / "bin" / name, RECORD, 0o755)
    (bundle / "usr/bin/socat").unlink()
    return called(bundle, folder / "record", *arguments, **variables)


@pytest.mark.parametrize("proxy", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dbclient_becomes_what_is_run_where_no_agent_is_reached(shape: str, proxy: bool, tmp_path: Path) -> None:
    script = end_proxy(exec_script(shape), proxy, binary=True)
    before = words_of(script, tmp_path / "before")
    after = words_of(use_channel(script), tmp_path / "after")
    assert after[:4] == ["exec", "--wait", "0.02", "--or-else"]
    assert [word.replace("/after/", "/before/") for word in fallback(after)] == before
    assert use_channel(use_channel(script)) == use_channel(script)


@pytest.mark.parametrize("tty", ["true", "false"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_guest_is_asked_for_the_same_user_directory_and_words_as_bytes(
    shape: str, tty: str, tmp_path: Path
) -> None:
    words = ["Ä", "… .txt", "two\nlines", "", "a  'b' \"c\" \\ $HOME `id` ; *", "\udc80\udcff"]
    arguments = ["1000:1001:7,8", "/some  where/Ä", "1", tty, "-x", *words]
    found = words_of(edited(exec_script(shape)), tmp_path, *arguments, RUNCVM_PATH="/bundle/bin", PATH="/usr/bin:/bin")
    asked = [word.encode("latin-1").decode(errors="surrogateescape") for word in found[found.index(";") + 1 :]]
    path = asked.pop(asked.index("-e") + 1)
    assert path.startswith("PATH=")
    assert path.endswith("/usr/bin:/bin")
    assert asked == [
        "-i",
        *["-t"] * (tty == "true"),
        *["--clear-env", "--preserve-env", "-e"],
        *["-u", "1000:1001", "--groups", "7,8", "-w", "/some  where/Ä"],
        *["/run/firecracker.vsock", "--", "-x", *words],
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_dbclient_would_need_is_encoded_without_a_process(shape: str, tmp_path: Path) -> None:
    script = exec_script(shape).replace("encode() {\n", "encode() {\n  # blanks, quotes, \\\n")
    assert fallback(words_of(edited(script), tmp_path, tr=False))


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_it_is_encoded_to_the_same_bytes(locale: str, tmp_path: Path) -> None:
    words = ["Ä", "… .txt", "two\nlines\n", "", "\t 'b' \"c\" \\ $HOME `id` ; * & %s", "\udc80\udc85\udcff"]
    asked = []
    for name, script in (("before", end_proxy(FORK, binary=True)), ("after", edited(FORK))):
        arguments = ["1000:1001:7,8", "/some where/Ä", "1", "true", *words]
        found = fallback(words_of(script, tmp_path / name, *arguments, LC_ALL=locale, ODD="".join(words)))
        asked.append([word.replace(f"/{name}/", "/") for word in found])
    assert asked[0] == asked[1]
    assert "/some\x82where/Ã\x84" in asked[0][-1], "the directory is in dbclient's last word"


@pytest.mark.parametrize(("tr", "other"), [("\\204\\205'", "\\204\\206'"), ('  tr "', '  LC_ALL=C tr "')])
def test_an_encoding_that_is_another_one_stays_as_it_is(tr: str, other: str, tmp_path: Path) -> None:
    script = FORK.replace(tr, other)
    assert script != FORK
    before = words_of(end_proxy(script, binary=True), tmp_path / "before")
    after = words_of(edited(script), tmp_path / "after")
    assert [word.replace("/after/", "/before/") for word in fallback(after)] == before
    assert "fastvsock_encode" not in edited(script)


FORK = exec_script("fork")


@pytest.mark.parametrize(("given", "first"), [("", "/.runcvm/guest/usr/sbin:"), ("/a:/b", "/a:/b:")])
def test_the_guests_path_begins_with_the_bundles_programs(given: str, first: str, tmp_path: Path) -> None:
    defaultless = FORK.replace(". $RUNCVM_GUEST/scripts/runcvm-ctr-defaults", "")
    words = words_of(edited(defaultless), tmp_path, PATH="/usr/bin:/bin", RUNCVM_PATH=given)
    path = words[words.index("-e") + 1]
    assert path.startswith(f"PATH={first}")
    assert path.endswith(":/usr/bin:/bin")


OTHER_SPELLINGS = {
    "braces": FORK.replace("'$uidgid'", "'${uidgid}'").replace("'$args_bin'", "'${args_bin}'"),
    "printf for echo": FORK.replace("$(echo -n $cwd | encode)", "$(printf '%s' \"$cwd\" | encode)"),
    "quotes": FORK.replace("opts=(-t)", 'opts=("-t")').replace("printf '%s\\n' \"${args", 'printf "%s\\n" "${args'),
    "other names": FORK.replace("args_bin", "encoded").replace("args", "rest").replace("env_bin", "variables")
    .replace("opts", "flags").replace("uidgid", "who").replace("cwd", "where").replace("encode()", "to_bin()")
    .replace("| encode", "| to_bin"),
    "no quotes around the arguments": FORK.replace('uidgid="$1"', "uidgid=$1").replace('cwd="$2"', "cwd=${2}"),
    "no blank before the environment": FORK.replace("< <(env", "< <( env").replace("-u PWD)", "-u PWD -u OLDPWD )"),
    "another word for mapfile": FORK.replace("mapfile", "readarray"),
    "a dbclient that the script waits for": FORK.replace('exec "$DBCLIENT_BIN"', '"$DBCLIENT_BIN"', 1) + "exit $?\n",
    "comments behind the code": FORK.replace('args=("$@")', 'args=("$@")  # all of the words'),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_SPELLINGS)
def test_other_spellings_ask_the_guest_for_the_same(what: str, tmp_path: Path) -> None:
    assert OTHER_SPELLINGS[what] != FORK
    asked = {}
    for name, script in (("usual", FORK), ("other", OTHER_SPELLINGS[what])):
        found = words_of(edited(script), tmp_path / name)
        asked[name] = [word.replace(f"/{name}/", "/") for word in found[found.index(";") :]]
    assert asked["usual"] == asked["other"]


UNKNOWN = {
    "another command for the guest": FORK.replace("\"$command '$uidgid'", "\"cd /; $command '$uidgid'"),
    "no environment": FORK.replace(" '$env_bin'", ""),
    "a part of the environment": FORK.replace("env -u _ -u SHLVL -u PWD", "env -u _ -u SHLVL -u PWD | grep -v KEY"),
    "an environment with more": FORK.replace("env -u _", "env A=B -u _"),
    "words that are changed": FORK.replace('args=("$@")', 'args=(nice "$@")'),
    "words that change later": FORK.replace('if [ "$tty"', 'args+=(more)\nif [ "$tty"'),
    "words in another place": FORK.replace('"${args[@]}" | encode', '"$@" | encode'),
    "encoded words that change later": FORK.replace('if [ "$tty"', 'args_bin="$args_bin x"\nif [ "$tty"'),
    "another user": FORK.replace('uidgid="$1"', 'uidgid="0:0:"'),
    "another directory": FORK.replace('cwd="$2"', 'cwd="/root$2"'),
    "another option of dbclient": FORK.replace("opts=(-t)", "opts=(-t -L 1:b:2)"),
    "one more option of dbclient": FORK.replace('"${opts[@]}" -p', '"${opts[@]}" -K 5 -p'),
    "more in dbclient's line": FORK.replace("'$env_bin'\"\n\nelse", "'$env_bin'\" 2>/dev/null\n\nelse"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_script_of_which_more_is_unknown_keeps_dbclient_alone_and_that_is_reported(what: str, tmp_path: Path) -> None:
    assert UNKNOWN[what] != FORK
    with pytest.raises(Unknown):
        edited(UNKNOWN[what])
    bundle = make_bundle(tmp_path / "bundle")
    put(bundle / EXEC, UNKNOWN[what], 0o755)
    plan = install_now(bundle, small())
    assert (bundle / EXEC).read_text() == end_proxy(UNKNOWN[what], binary=True)
    assert any(note.startswith(f"{EXEC} goes through dbclient only") for note in plan.notes)
    assert not plan.undone


def test_what_the_user_had_edited_keeps_its_own_way(tmp_path: Path) -> None:
    by_hand = FORK.partition("   PROXY_PORT=$((")[0] + (
        '   exec "$VSOCK_CONNECT_BIN" /run/firecracker.vsock 22 -- "$DBCLIENT_BIN" -J \'&3\' root@127.0.0.1 true\nfi\n'
    )
    bundle = make_bundle(tmp_path / "bundle")
    put(bundle / EXEC, by_hand, 0o755)
    assert "the static binary does not become dbclient there" in " ".join(install_now(bundle, small()).notes)
    assert (bundle / EXEC).read_text() == by_hand


@pytest.mark.parametrize("shape", SHAPES)
def test_the_package_leaves_dbclient_alone_and_both_come_back_byte_for_byte(shape: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", shape)
    install_now(bundle, small())
    assert "--or-else" in (bundle / EXEC).read_text()
    assert runcvm("install", bundle).returncode == 0
    assert "--or-else" not in (bundle / EXEC).read_text()
    assert runcvm("uninstall", bundle).returncode == 0
    assert (bundle / EXEC).read_text() == exec_script(shape)
