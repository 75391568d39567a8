"""Completion scripts, made from the parser: commands, options, their choices, files here and in the experiment."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_dash.cli.offering import COMMAND
from ml_dash.cli.parser import PROGRAM, actions_of

LOCAL = {"FILE": "files", "DIR": "folders", "DEST": "files", "ROOT": "folders", "SOCKET": "files"}
"""What a metavar stands for, where it is something on this machine."""
ARGUMENTS = {**LOCAL, "PATH": "stored", "PATTERN": "stored"}
"""The same of a command's arguments, which may be files of an experiment, too; `offering` finds those."""


class Option(NamedTuple):
    """An option: `value` is "" for a flag, "files", "folders", or "any"."""

    flags: tuple[str, ...]
    help: str
    value: str
    choices: tuple[str, ...]
    repeats: bool


class Command(NamedTuple):
    """A command: `argument` is what its first may be, as an option's value, or "stored"; `choices` if it has some."""

    name: str
    help: str
    options: tuple[Option, ...]
    argument: str
    choices: tuple[str, ...]


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for bash, zsh or fish."""
    shared = tuple(_options(parser))
    lines = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](shared, tuple(_commands(parser)))
    return "\n".join(lines) + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[Command]:
    for action in actions_of(parser):
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 its only name
            helps = {choice.dest: choice.help or "" for choice in action._get_subactions()}  # noqa: SLF001
            for name, command in action.choices.items():
                first = next((each for each in actions_of(command) if not each.option_strings), None)
                value = "" if first is None else ARGUMENTS.get(str(first.metavar), "any")
                choices = _choices(first)
                yield Command(name, helps[name], tuple(_options(command)), value, choices)


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in actions_of(parser):
        if action.option_strings:
            value = "" if action.nargs == 0 else LOCAL.get(str(action.metavar), "any")
            repeats = isinstance(action.default, list)  # as of those alone that are appended
            yield Option(tuple(action.option_strings), action.help or "", value, _choices(action), repeats)


def _choices(action: argparse.Action | None) -> tuple[str, ...]:
    return tuple(map(str, action.choices)) if action is not None and action.choices is not None else ()


# ---- bash


def _bash(shared: Sequence[Option], commands: Sequence[Command]) -> Iterator[str]:
    names = " ".join(command.name for command in commands)
    yield from (
        f"# {PROGRAM} completion for bash",
        "_ml_dash() {",
        '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}"',
        '    local command="" skip="" word',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD - 1}"; do',
        '        if [[ "$word" == "=" ]]; then skip=yes  # readline makes three words of --root=DIR',
        '        elif [[ -n "$skip" ]]; then skip=""',
        f'        else case "$word" in {"|".join(_with_values(shared))}) skip=yes ;; -*) ;;',
        '            *) command="$word"; break ;;',
        "        esac; fi",
        "    done",
        '    if [[ "$current" == "=" ]]; then current=""',
        '    elif [[ "$previous" == "=" ]]; then previous="${COMP_WORDS[COMP_CWORD - 2]}"; fi',
        '    local complete="" words=""',
        '    case "$command $previous" in',
    )
    for command in (Command("", "", tuple(shared), "", ()), *commands):
        for option in command.options:
            if option.value:
                patterns = "|".join(f'"{command.name} {flag}"' for flag in option.flags)
                yield f"        {patterns}) {_bash_value(option.value, option.choices)} ;;"
    yield '        *) case "$command" in'
    yield f'            "") complete=words words="{names} {_flags(shared)}" ;;'
    for command in commands:
        words = " ".join((*command.choices, _flags(command.options)))
        kind = command.argument if command.argument in ("files", "folders", "stored") else "words"
        yield f'            {command.name}) complete={kind} words="{words}" ;;'
    yield from (
        "        esac ;;",
        "    esac",
        '    [[ "$current" == -* && -n "$words" ]] && complete=words',
        '    case "$complete" in',
        '        words) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current") ;;',
        '        files) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;',
        '        folders) mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;',
        "        stored)",
        f'            mapfile -t COMPREPLY < <({PROGRAM} {COMMAND} "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2> /dev/null)',
        '            [[ "${COMPREPLY[*]-}" == */ ]] && compopt -o nospace 2> /dev/null ;;',
        "        *) COMPREPLY=() ;;",
        "    esac",
        "}",
        f"complete -o filenames -F _ml_dash {PROGRAM}",
    )


def _bash_value(value: str, choices: Sequence[str]) -> str:
    if choices:
        return f'complete=words words="{" ".join(choices)}"'
    return "" if value == "any" else f"complete={value}"


def _flags(options: Sequence[Option]) -> str:
    return " ".join(flag for option in options for flag in option.flags)


def _with_values(options: Sequence[Option]) -> list[str]:
    """Behind which a word is no command, whatever it is called."""
    return [flag for option in options if option.value for flag in option.flags]


# ---- zsh


def _zsh(shared: Sequence[Option], commands: Sequence[Command]) -> Iterator[str]:
    yield from (
        f"#compdef {PROGRAM}",
        "_ml_dash_stored() {",
        '    [[ "$PREFIX" == -* ]] && return',
        f'    local -a found=("${{(@f)$({PROGRAM} {COMMAND} "${{before[@]}}" "$PREFIX" 2> /dev/null)}}")',
        "    compadd -S '' -- ${(M)found:#*/}",
        "    compadd -- ${found:#*/}",
        "}",
        "_ml_dash() {",
        '    local -a before=("${(@)words[2,CURRENT-1]}")',
        "    local context state state_descr line",
        "    typeset -A opt_args",
        "    local -a commands=(",
    )
    for command in commands:
        yield f"        {_quoted(f'{command.name}:{command.help}')}"
    yield "    )"
    yield "    _arguments -C -A '-*' \\"
    yield from _zsh_options(shared)
    yield "        '1:command:->command' '*::argument:->rest'"
    yield '    case "$state" in'
    yield "        command) _describe command commands ;;"
    yield '        rest) case "$line[1]" in'
    for command in commands:
        yield f"            {command.name}) _arguments \\"
        yield from _zsh_options(command.options)
        action = f"({' '.join(command.choices)})" if command.choices else _ZSH[command.argument]
        yield f"                {_quoted(f'*:{command.name}:{action}')} ;;"
    yield from (
        "        esac ;;",
        "    esac",
        "}",
        'if [ "${funcstack[1]}" = _ml-dash ]; then _ml_dash "$@"; else compdef _ml_dash ml-dash; fi',
    )


_ZSH = {"files": "_files", "folders": "_files -/", "stored": "_ml_dash_stored", "any": " ", "": " "}


def _zsh_options(options: Sequence[Option]) -> Iterator[str]:
    for option in options:
        text = option.help.translate({ord(mark): f"\\{mark}" for mark in "[]:\\"})
        action = f"({' '.join(option.choices)})" if option.choices else _ZSH[option.value]
        value = f":value:{action}" if option.value else ""
        again = "*" if option.repeats else ""
        for flag in option.flags:
            joined = "=" if option.value and flag.startswith("--") else ""
            yield f"        {_quoted(f'{again}{flag}{joined}[{text}]{value}')} \\"


# ---- fish


def _fish(shared: Sequence[Option], commands: Sequence[Command]) -> Iterator[str]:
    yield from (
        f"# {PROGRAM} completion for fish",
        "function __ml_dash_at -d 'whether the command is that one; without a name, whether there is none yet'",
        "    set -l skip",
        "    set -l command",
        "    for word in (commandline -opc)[2..-1]",
        '        if test -n "$skip"',
        "            set skip",
        f"        else if contains -- $word {' '.join(_with_values(shared))}",
        "            set skip yes",
        "        else if not string match -q -- '-*' $word",
        "            set command $word",
        "            break",
        "        end",
        "    end",
        '    test "$command" = "$argv[1]"',
        "end",
        "function __ml_dash_stored -d 'files of the experiment'",
        "    string match -q -- '-*' (commandline -ct); and return",
        f"    {PROGRAM} {COMMAND} (commandline -opc)[2..-1] (commandline -ct) 2> /dev/null",
        "end",
        f"complete -c {PROGRAM} -f",
    )
    for command in commands:
        yield f"complete -c {PROGRAM} -n __ml_dash_at -a {command.name} -d {_quoted(command.help)}"
    for option in shared:
        yield f"complete -c {PROGRAM} {_fish_option(option)}"
    for command in commands:
        seen = f"complete -c {PROGRAM} -n '__ml_dash_at {command.name}'"
        for option in command.options:
            if option not in shared:
                yield f"{seen} {_fish_option(option)}"
        if command.choices:
            yield f"{seen} -a {_quoted(' '.join(command.choices))}"
        elif command.argument in _FISH:
            yield f"{seen} {_FISH[command.argument]}"


_FISH = {"files": "-F", "folders": "-a '(__fish_complete_directories)'", "stored": "-a '(__ml_dash_stored)'"}


def _fish_option(option: Option) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    value = {"": "", "any": " -x", "files": " -r -F", "folders": " -x -a '(__fish_complete_directories)'"}[option.value]
    choices = f" -a {_quoted(' '.join(option.choices))}" if option.choices else ""
    return f"{flags}{value}{choices} -d {_quoted(option.help)}"


def _quoted(text: str) -> str:
    """One word for any of the shells."""
    return "'" + text.replace("'", "'\\''") + "'"
