"""Completion in bash, zsh and fish: each says itself what it offers for what is typed, loaded as the help says."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ml_dash.cli.parser import COMMANDS, EXAMPLES, actions_of, build
from tests.scenario.embedded import Root
from tests.scenario.shell import RUN
from tests.servers.debian import NotInstallableError
from tests.servers.shells import shell_command

pytestmark = pytest.mark.slow

CASES: dict[str, set[str]] = {
    "ml-dash ": {*COMMANDS},
    "ml-dash st": {"status"},
    "ml-dash --": {"--help", "--json", "--socket", "--root", "--version"},
    "ml-dash --json pu": {"put", "push"},
    "ml-dash put --d": {"--description", "--durability", "--dry-run"},
    "ml-dash put --durability ": {"disk", "memory"},
    "ml-dash put --durability d": {"disk"},
    "ml-dash put --durability=": {"disk", "memory"},
    "ml-dash put --durability=d": {"disk"},
    "ml-dash put mod": {"model one.pt", "models"},
    "ml-dash put a.pt mod": {"model one.pt", "models"},
    "ml-dash put --prefix ": set(),
    "ml-dash ls --root mod": {"models"},
    "ml-dash ls --root=mod": {"models"},
    "ml-dash get -o mod": {"model one.pt", "models"},
    "ml-dash get --output mod": {"model one.pt", "models"},
    "ml-dash ls mod": set(),
    "ml-dash push mod": {"models"},
    "ml-dash get --r": {"--recursive", "--root"},
    "ml-dash ls --l": {"--latest"},
    "ml-dash ls --json --l": {"--latest"},
    "ml-dash ls --tag best --t": {"--tag"},
    "ml-dash completion ": {"bash", "zsh", "fish"},
    # Words that are a command's name elsewhere.
    "ml-dash get top --on": set(),
    "ml-dash put completion mod": {"model one.pt", "models"},
    "ml-dash --root put ls --l": {"--latest"},
    "ml-dash --root=put ls --l": {"--latest"},
    "ml-dash none --l": set(),
    # Files of an experiment, a folder at a time.
    "ml-dash get --root ~/root --prefix alice/cv/resnet ": {"[1].pt", "models", "müller"},
    "ml-dash --root ~/root versions --prefix=alice/cv/resnet models/": {"models/a b.pt", "models/deep"},
    "ml-dash update --root ~/root --prefix 'alice/cv/resnet' models/a": {"models/a b.pt"},
    "ml-dash rm a.pt --root ~/root --prefix alice/cv/resnet /models/d": {"/models/deep"},
    "ml-dash get --root ~/none --prefix alice/cv/resnet ": set(),
}
OPTIONS = {f"ml-dash {command} --": command for command in COMMANDS}
ASK_BASH = """
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _ml_dash; printf '%s\\n' "${COMPREPLY[@]}"; }
"""
ASK_ZSH = """
compadd() {
    # What would be added is told; what is asked for another reason goes by.
    if [[ " ${@[1,(i)(-|--)]} " != *\\ -[a-zA-Z0-9]#[OAD]\\ * ]]; then
        local -a hits
        builtin compadd -A hits "$@"
        print -rl -- $hits >> ~/found
    fi
    builtin compadd "$@"
}
zle-line-init() {
    for BUFFER in "${(@f)$(< ~/typed)}"; do
        print -r -- "> $BUFFER" >> ~/found
        CURSOR=$#BUFFER
        zle complete-word
    done
    exit
}
zle -N zle-line-init
"""
"""Of a zsh that completes each line as soon as it can be typed into, and ends."""
ASK_FISH = """
for typed in $argv; echo "> $typed"; complete -C $typed; end
"""
COMPINIT = "autoload -Uz compinit && compinit -u -D\n"


def in_bash(path: str, home: Path, folder: Path) -> str:
    """Its words are split as readline does it, which makes three of --root=DIR."""
    lines = [loaded_as_the_help_says("bash"), ASK_BASH]
    for typed in (*CASES, *OPTIONS):
        words = shlex.split(re.sub(r"=(?=\S*$)", " = ", typed))
        words += [""] if typed.endswith(" ") else []
        lines += [f"echo {shlex.quote(f'> {typed}')}", f"ask {shlex.join(words)}"]
    return said([path, "-uc", "\n".join(lines)], home, folder)


def in_zsh(path: str, home: Path, folder: Path) -> str:
    return typed_into_zsh(path, home, folder, COMPINIT + loaded_as_the_help_says("zsh"))


def in_zsh_as_a_file(path: str, home: Path, folder: Path) -> str:
    return typed_into_zsh(path, home, folder, f"fpath=(~ $fpath)\nml-dash completion zsh > ~/_ml-dash\n{COMPINIT}")


def typed_into_zsh(path: str, home: Path, folder: Path, load: str) -> str:
    (home / ".zshrc").write_text(load + ASK_ZSH)
    (home / "typed").write_text("\n".join((*CASES, *OPTIONS)))
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [path, "-i", "+m"], env=environment(home), cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        with suppress(OSError):  # EIO: it has ended
            while os.read(ours, 65536):
                pass
        os.close(ours)
        process.wait(60)
    return re.sub(r"\\(.)", r"\1", (home / "found").read_text())


def in_fish(path: str, home: Path, folder: Path) -> str:
    found = said([path, "-c", loaded_as_the_help_says("fish") + ASK_FISH, *CASES, *OPTIONS], home, folder)
    return re.sub(r"^--\w+=|\t.*$", "", found, flags=re.MULTILINE)


def loaded_as_the_help_says(shell: str) -> str:
    """The example of `ml-dash completion --help`."""
    (line,) = (line for line in EXAMPLES["completion"].splitlines() if f"completion {shell}" in line)
    return line.strip().partition("  ")[0]


def said(command: list[str], home: Path, folder: Path) -> str:
    done = subprocess.run(
        command, env=environment(home), cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    return done.stdout


def environment(home: Path) -> dict[str, str]:
    where = {name: str(home) for name in ("HOME", "ZDOTDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME")}
    return {"PATH": f"{home}:{os.environ['PATH']}", "TERM": "dumb", "LC_ALL": "C.UTF-8", **where}


ASK: list[tuple[str, Callable[[str, Path, Path], str]]] = [
    ("bash", in_bash),
    ("zsh", in_zsh),
    ("zsh", in_zsh_as_a_file),
    ("fish", in_fish),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root with files, whose daemon runs."""
    root = Root(tmp_path_factory.mktemp("stored") / "root")
    with root.experiment("alice/cv/resnet").run as exp:
        for name in ("[1].pt", "models/a b.pt", "models/a b.pt", "models/deep/er/c.pt", "müller/d.pt"):
            exp.files.save_text(name, to=name)
        yield root.path
    root.end()


@pytest.fixture(scope="module", params=ASK, ids=lambda ask: ask[1].__name__)
def offers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, set[str]]:
    """What a shell offers for each line, all asked at once: some take a second to start."""
    shell, ask = request.param
    try:
        path = "/bin/bash" if shell == "bash" else shell_command(shell)
    except NotInstallableError as reason:
        pytest.skip(f"no {shell}: {reason}")
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    (home / "ml-dash").write_text(f'#!/bin/sh\nexec {shlex.join(RUN)} "$@"\n')
    (home / "ml-dash").chmod(0o755)
    (home / "root").symlink_to(root)
    for each in ("models", "put"):
        (folder / each).mkdir()
    (folder / "model one.pt").touch()
    answers = [answer.split("\n") for answer in ask(path, home, folder).removeprefix("> ").split("\n> ")]
    assert not (home / "none").exists()
    assert not (folder / ".dash").exists()
    return {typed: {each.rstrip("/") for each in rest} - {""} for typed, *rest in answers}


def test_what_is_offered(offers: dict[str, set[str]]) -> None:
    found = {typed: offers[typed] - {"-h"} for typed in CASES}
    for typed in (typed for typed in CASES if typed.endswith(" ")):  # bash shows options, too, before the dash
        found[typed] = {word for word in found[typed] if not word.startswith("-")}
    assert found == CASES


def test_every_option_of_every_command_is_offered(offers: dict[str, set[str]]) -> None:
    commands = next(each for each in actions_of(build()) if isinstance(each, argparse._SubParsersAction))
    for typed, command in OPTIONS.items():
        options = {flag for action in actions_of(commands.choices[command]) for flag in action.option_strings}
        assert offers[typed] == {flag for flag in options if flag.startswith("--")}, command


def test_a_daemon_that_hangs_is_not_waited_for(root: Path) -> None:
    with Root(root).experiment("alice/cv/resnet").run:
        pid = Root(root).status().pid
        asked = [*RUN, "__complete", "get", "--root", str(root), "--prefix", "alice/cv/resnet"]
        assert (
            subprocess.run([*asked, "mü"], capture_output=True, timeout=60, check=True).stdout == "müller/\n".encode()
        )
        os.kill(pid, signal.SIGSTOP)
        try:  # a question has half a minute elsewhere
            done = subprocess.run([*asked, "mü"], capture_output=True, timeout=25, check=True)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert (done.stdout, done.stderr) == (b"", b"")
