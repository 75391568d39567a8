"""What can be typed: commands, options and examples. The completion scripts are made from this parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ml_dash.cli import arguments
from ml_dash.cli.values import add_described, add_prefix, count, file_id, seconds, span
from ml_dash.release import release

PROGRAM = "ml-dash"
DEADLINE_S = 90
"""Of the two minutes that a cloud gives a machine that it takes back, with some left for the rest."""
EXAMPLES = {
    "": """\
  ml-dash put model.pt --prefix alice/cv/resnet --to models/best.pt --wait
  ml-dash ls "models/*.pt" --prefix alice/cv/resnet
  ml-dash COMMAND --help                           more on each command""",
    "status": """\
  ml-dash status                                   the daemon that a script here would use
  ml-dash status --root ./runs                     the one that serves a folder
  ml-dash status --json | jq '.files.QUEUED.files // 0'""",
    "put": """\
  ml-dash put model.pt --prefix alice/cv/resnet
  ml-dash put model.pt --prefix alice/cv/resnet --to models/best.pt --tag best --wait
  ml-dash put *.pt --prefix alice/cv/resnet --to models         each below models, under its own name
  ml-dash put last.pt --prefix alice/cv/resnet --priority 10
  ml-dash put log.txt --prefix alice/cv/resnet --metadata '{"epoch": 3}' --json
  ml-dash put -r runs/1 --prefix alice/cv/resnet --to runs/1 --exclude "**/*.tmp" --wait""",
    "ls": """\
  ml-dash ls --prefix alice/cv/resnet              every version of every file
  ml-dash ls models --prefix alice/cv/resnet       at and below models
  ml-dash ls --tag best --latest --prefix alice/cv/resnet
  ml-dash ls "**/*.json" --latest --prefix alice/cv/resnet --json
  ml-dash ls --pending --prefix alice/cv/resnet    files of sets that are not complete, too
  ml-dash ls --all --json | jq -r '.[] | select(.createdAt > "2026-05-01") | .experimentId'""",
    "get": """\
  ml-dash get models/best.pt --prefix alice/cv/resnet
  ml-dash get a.pt b.pt "models/*.pt" --prefix alice/cv/resnet -o ./out
  ml-dash get -r models --prefix alice/cv/resnet -o ./out    all below models; once more: what is missing
  ml-dash get --id 7351023561728 -o old.pt         one version, wherever it belongs
  ml-dash get config.json --prefix alice/cv/resnet -o - | jq .lr""",
    "rm": """\
  ml-dash rm models/bad.pt --prefix alice/cv/resnet    all its versions
  ml-dash rm "tmp/**" logs/1.txt --prefix alice/cv/resnet
  ml-dash rm --id 7351023561728                        one version""",
    "prune": """\
  ml-dash prune --prefix alice/cv/resnet --keep-last 3 --dry-run     what would go
  ml-dash prune "checkpoints/**" --prefix alice/cv/resnet --keep-last 3 --keep-tag best""",
    "wait": """\
  ml-dash wait                                     for everything that is on its way
  ml-dash wait --prefix alice/cv/resnet --timeout 600
  ml-dash wait 7351023561728 7351023561729""",
    "drain": """\
  ml-dash drain --deadline 90s                     before a reboot; hand-offs are still taken
  ml-dash drain --deadline 2m --stop               and end the daemon, where nothing else does
  ml-dash drain --deadline 1h --json | jq .leftFiles""",
    "doctor": """\
  ml-dash doctor                                   what is wrong, and what to do about it
  ml-dash doctor --socket /run/ml-dash/ml-dashd.sock
  ml-dash doctor --json | jq '.checks[] | select(.verdict == "bad")'
  ml-dash doctor --reconcile --dry-run             compare store and catalog; change nothing
  ml-dash doctor --reconcile                       and mend what does not go together
  ml-dash doctor --reconcile --json | jq '.findings[] | select(.outcome == "kept")'""",
    "nodes": """\
  ml-dash nodes                                    the daemons that share the catalog
  ml-dash nodes --all                              those, too, whose leases are over
  ml-dash nodes --json | jq -r '.[].host'""",
    "experiments": """\
  ml-dash experiments                              all that a run was begun of, and how they fare
  ml-dash experiments alice/cv
  ml-dash experiments --json | jq '.[] | select(.status == "FAILED")'""",
    "params": """\
  ml-dash params --prefix alice/cv/resnet
  ml-dash params --prefix alice/cv/resnet --json | jq '."opt.name"'""",
    "metrics": """\
  ml-dash metrics --prefix alice/cv/resnet             the rows of every metric
  ml-dash metrics train --prefix alice/cv/resnet --follow
  ml-dash metrics train --prefix alice/cv/resnet --json | jq '.[-1].data.loss'""",
    "completion": """\
  source <(ml-dash completion bash)                now; put it into ~/.bashrc to keep it
  source <(ml-dash completion zsh)                 in ~/.zshrc, below compinit
  ml-dash completion fish | source                 in ~/.config/fish/config.fish""",
    **arguments.EXAMPLES,
}


class UsageError(Exception):
    """What was typed can't be understood."""

    def __init__(self, message: str, usage: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.usage = usage
        self.hint = hint


class Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would end the process."""

    def __init__(self, **words: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **words)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage(), f"see `{self.prog} --help`")


def build() -> Parser:
    """The parser. Options that all commands share may stand before the command or after it."""
    parser = Parser(
        prog=PROGRAM,
        description="Hands files to the ML-Dash daemon, shows how they fare, and brings them back.",
        epilog=f"examples:\n{EXAMPLES['']}\n\nexit status: 0, 1 failed, 2 wrong usage, 3 no daemon",
    )
    _add_shared(parser, json=False, socket=None, root=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, (text, add_arguments) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"examples:\n{EXAMPLES[name]}",
        )
        add_arguments(command)
        _add_shared(command, json=argparse.SUPPRESS, socket=argparse.SUPPRESS, root=argparse.SUPPRESS)
    return parser


def _add_shared(parser: Parser, **defaults: Any) -> None:
    """A command has no defaults of its own, so that it does not undo what stands before it."""
    options = parser.add_argument_group("options of every command")
    options.add_argument("--json", action="store_true", help="print one JSON document", default=defaults["json"])
    where = options.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="SOCKET", help="a daemon's socket", default=defaults["socket"])
    where.add_argument("--root", metavar="DIR", help="a folder with its own daemon", default=defaults["root"])
    options.add_argument("--version", action="version", version=f"{PROGRAM} {release()}")


def _doctor(parser: Parser) -> None:
    parser.add_argument(
        "--reconcile", action="store_true", help="compare store and catalog, and mend what does not go together"
    )
    parser.add_argument("--dry-run", action="store_true", help="with --reconcile: only say what would be done")


def _nodes(parser: Parser) -> None:
    parser.add_argument("--all", action="store_true", help="those, too, whose leases are over")


def _status(_: Parser) -> None:
    """It has no arguments of its own."""


def _put(parser: Parser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="the files to hand over; with -r folders, too")
    add_prefix(parser)
    parser.add_argument("--to", metavar="PATH", help=arguments.TO)
    add_described(parser)
    parser.add_argument("--wait", action="store_true", help="return only when it is stored")
    parser.add_argument(
        "--durability", choices=("disk", "memory"), default="", help="disk: return only when it outlives a reboot"
    )
    parser.add_argument("--priority", metavar="N", type=int, default=0, help="-100 to 100; higher goes first")
    parser.add_argument("--supersede", action="store_true", help="drop older versions that are not stored yet")
    parser.add_argument("--snapshot", choices=("copy",), default="", help="copy: it may be overwritten at once")
    parser.add_argument(
        "--protect", choices=("lease",), default="", help="lease: whoever opens it to write waits while it is copied"
    )
    arguments.add_folder_options(parser)


def _ls(parser: Parser) -> None:
    text = 'a folder, a file or a glob, such as "**/*.json" (default: all, as .)'
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", help=text)
    add_prefix(parser)
    parser.add_argument("--all", action="store_true", help="what is stored of every experiment, the oldest first")
    parser.add_argument("--latest", action="store_true", help="only the newest version of each path")
    parser.add_argument("--pending", action="store_true", help="files of sets that are not complete, too")
    text = "only what has this tag; may be repeated, for those that have all of them"
    parser.add_argument("--tag", metavar="TAG", action="append", default=[], dest="tags", help=text)


def _get(parser: Parser) -> None:
    _add_path_or_id(parser, required=False)
    arguments.add_tree_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DEST",
        help="a file or a folder to write to, - for stdout; of several files, a folder (default: the working folder)",
    )


def _rm(parser: Parser) -> None:
    _add_path_or_id(parser)


def _prune(parser: Parser) -> None:
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", help="a folder, a file or a glob (default: all)")
    add_prefix(parser)
    parser.add_argument(
        "--keep-last", metavar="N", type=count, required=True, help="stored versions of each path that stay"
    )
    parser.add_argument(
        "--keep-tag",
        metavar="TAG",
        action="append",
        default=[],
        dest="keep_tags",
        help="versions with it stay, too; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="delete nothing; print what would go")


def _wait(parser: Parser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", type=file_id, help="files, by their ids")
    parser.add_argument("--prefix", metavar="NS/PROJ/EXP", help="all files of an experiment")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, help="give up after so long; the work goes on")


def _drain(parser: Parser) -> None:
    parser.add_argument(
        "--deadline",
        metavar="TIME",
        type=span,
        default=DEADLINE_S,
        help=f"how long it may take: 90s, 2m, 1h, or seconds (default: {DEADLINE_S}s)",
    )
    parser.add_argument("--stop", action="store_true", help="end the daemon afterwards, whatever is left")


def _experiments(parser: Parser) -> None:
    parser.add_argument("below", metavar="PREFIX", nargs="?", default="", help="a namespace, a project, an experiment")


def _params(parser: Parser) -> None:
    add_prefix(parser)


def _metrics(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="one metric (default: all; None is the unnamed one)")
    add_prefix(parser)
    parser.add_argument("--follow", action="store_true", help="print rows as they come, until the run has ended")


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")


COMMANDS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "status": ("how the daemon and its files are doing", _status),
    "put": ("hand a file over", _put),
    "ls": ("list files", _ls),
    "get": ("download files, their checksums verified", _get),
    "rm": ("delete files; one that is on its way is cancelled", _rm),
    "prune": ("delete old versions; the newest of each path stay", _prune),
    "wait": ("wait until files are stored", _wait),
    "drain": ("send the most valuable files first, until the deadline; list what is left", _drain),
    "doctor": ("look for all that may be wrong: store, credentials, permissions, disks, limits", _doctor),
    **arguments.COMMANDS,
    "nodes": ("list the daemons that share the catalog, with their numbers and leases", _nodes),
    "experiments": ("list experiments, and how their runs fare", _experiments),
    "params": ("print what an experiment was run with", _params),
    "metrics": ("print the rows of metrics; with --json --follow, one JSON document a row", _metrics),
    "completion": ("print a completion script for a shell", _completion),
}


def _add_path_or_id(parser: Parser, *, required: bool = True) -> None:
    which = parser.add_mutually_exclusive_group(required=required)
    text = "files in the experiment, or globs"
    which.add_argument("paths", metavar="PATH", nargs="*", default=[], help=text)
    which.add_argument("--id", metavar="ID", type=file_id, help="one version, by its id; needs no prefix")
    add_prefix(parser)


def wrong(command: str, message: str) -> UsageError:
    """For a command to raise where its arguments do not go together."""
    commands = next(each for each in actions_of(build()) if isinstance(each, argparse._SubParsersAction))  # noqa: SLF001
    return UsageError(message, commands.choices[command].format_usage(), f"see `{PROGRAM} {command} --help`")


def actions_of(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """A parser's options and arguments; argparse has no public way to ask for them."""
    return parser._actions  # noqa: SLF001
