"""What can be typed for folders, for files that are somewhere already, and under the names of earlier releases."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ml_dash.cli.values import add_described, add_prefix, file_id

EXAMPLES = {
    "versions": """\
  ml-dash versions models/best.pt --prefix alice/cv/resnet
  ml-dash versions models/best.pt --prefix alice/cv/resnet --json | jq -r '.[].checksum'""",
    "update": """\
  ml-dash update models/best.pt --prefix alice/cv/resnet --tag best --tag released
  ml-dash update models/best.pt --prefix alice/cv/resnet --clear-tags
  ml-dash update --id 7351023561728 --description "epoch 50" --metadata '{"epoch": 50}'""",
    "verify": """\
  ml-dash verify --prefix alice/cv/resnet          every version of every file
  ml-dash verify "models/**" --latest --prefix alice/cv/resnet
  ml-dash verify --id 7351023561728 --json""",
    "cancel": """\
  ml-dash cancel models/bad.pt --prefix alice/cv/resnet    its versions that are on their way
  ml-dash cancel 7351023561728 7351023561729""",
    "retry": """\
  ml-dash retry 7351023561728                      one that failed, or is blocked
  ml-dash retry --all""",
    "top": """\
  ml-dash top                                      until q is pressed
  ml-dash top --once                               as it is now
  ml-dash top --json | jq .bytesPerSecond""",
    "push": """\
  ml-dash push                                     from .dash to the service that runs here
  ml-dash push /scratch/.dash --socket /run/ml-dash/ml-dashd.sock
  ml-dash push --prefix "alice/cv/*" --target team/cv --dry-run""",
    "upload": """\
  ml-dash upload .dash -p "alice/cv/*" -t team/cv  as push
  ml-dash upload results -p alice/cv/resnet        as put -r: it is no root""",
    "download": """\
  ml-dash download out -p alice/cv/resnet          as get -r, into out/alice/cv/resnet/files""",
    "list": """\
  ml-dash list -p alice/cv/resnet                  as ls""",
}


TO = "its path in the experiment (default: its own name); of several files, or with a / at its end, a folder there"


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """What `put` takes for a folder."""
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="folders, too; what is stored already, by size and SHA-256, is skipped",
    )
    text = 'with -r: only what fits, such as "**/*.pt"; may be repeated'
    parser.add_argument("--include", metavar="GLOB", action="append", default=[], help=text)
    text = "with -r: not what fits, files or whole folders; may be repeated"
    parser.add_argument("--exclude", metavar="GLOB", action="append", default=[], help=text)
    parser.add_argument("--dry-run", action="store_true", help="with -r: only say what would be done")


def add_tree_options(parser: argparse.ArgumentParser) -> None:
    """What `get` takes for a folder."""
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="all at and below PATH, folders kept; what is here is skipped"
    )
    parser.add_argument("--dry-run", action="store_true", help="with -r: only say what would be done")


def _versions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file in the experiment")
    add_prefix(parser)


def _update(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("path", metavar="PATH", nargs="?", help="a file in the experiment: its newest version")
    which.add_argument("--id", metavar="ID", type=file_id, help="one version, by its id; needs no prefix")
    add_prefix(parser)
    add_described(parser)
    parser.add_argument("--clear-tags", action="store_true", help="remove its tags")


def _verify(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("pattern", metavar="PATTERN", nargs="?", help="a folder, a file or a glob")
    which.add_argument("--id", metavar="ID", type=file_id, action="append", dest="ids", help="may be repeated")
    add_prefix(parser)
    parser.add_argument("--latest", action="store_true", help="only the newest version of each path")


def _cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="ID|PATH", nargs="+", help="files by their ids, paths or globs")
    add_prefix(parser)


def _retry(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", metavar="ID", nargs="*", type=file_id, default=[], help="files, by their ids")
    which.add_argument("--all", action="store_true", help="everything that failed or is blocked")


def _top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print it once, as without a terminal")


def _push(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--prefix", metavar="GLOB", help='only experiments that fit, such as "alice/cv/*"')
    parser.add_argument("--target", metavar="NS/PROJ", help="where experiments go (default: as they are called here)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def _upload(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    text = "of a root: experiments that fit; of another folder: the experiment it goes to"
    _add_old_prefix(parser, text)
    text = "of a root: where experiments go; of another folder: its path in the experiment"
    parser.add_argument("-t", "--target", metavar="TARGET", help=text)
    _add_old_options(parser)


def _download(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    _add_old_prefix(parser, "the experiment (default: $ML_DASH_PREFIX)")
    _add_old_options(parser)


def _list(parser: argparse.ArgumentParser) -> None:
    _add_old_prefix(parser, "the experiment (default: $ML_DASH_PREFIX)")
    parser.add_argument("-v", "--verbose", action="store_true", help="every version, not only the newest")


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="ROOT", nargs="?", help="a folder (default: $ML_DASH_ROOT, else .dash)")


def _add_old_prefix(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("-p", "--prefix", "--project", metavar="PREFIX", help=text)


def _add_old_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line a file, which is so anyway")


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "versions": ("list all versions of a file, with their checksums", _versions),
    "update": ("change what is said of a file; tags and metadata are replaced as a whole", _update),
    "verify": ("read stored files again, and compare them with their checksums", _verify),
    "cancel": ("stop files that are still on their way", _cancel),
    "retry": ("try files again that failed, and those that are blocked now", _retry),
    "top": ("watch what is on its way", _top),
    "push": ("send a root's files to a service, with their ids; what is there is skipped", _push),
    "upload": ("an old name: push for a root, put -r for another folder", _upload),
    "download": ("an old name: get -r", _download),
    "list": ("an old name: ls --latest", _list),
}
