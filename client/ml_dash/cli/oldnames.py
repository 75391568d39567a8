"""Commands under the names of earlier releases, with the options that scripts give them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ml_dash.arguments import is_glob
from ml_dash.cli import folders, pushing, reaching, report, show
from ml_dash.errors import Code, error
from ml_dash.home import HOME
from ml_dash.reach import default_prefix, default_root


def upload(options: Namespace) -> int:
    """A root is pushed; any other folder is handed over, below --target."""
    folder = Path(options.folder or default_root())
    if (folder / HOME).is_dir() or options.folder is None:
        return pushing.push(options)
    words = {
        "files": [str(folder)],
        "recursive": True,
        "to": options.target,
        "description": None,
        "tags": [],
        "metadata": None,
    }
    words |= {"include": [], "exclude": [], "durability": "", "snapshot": "", "protect": ""}
    words |= {"priority": 0, "supersede": False, "wait": True}
    return folders.put(Namespace(**vars(options) | words))


def download(options: Namespace) -> int:
    """An experiment's files, in the folders that a root has for them."""
    prefix = _experiment(options)
    output = str(Path(options.folder or default_root()) / prefix / "files")
    return folders.get(Namespace(**vars(options) | {"prefix": prefix, "paths": [], "id": None, "output": output}))


def list_files(options: Namespace) -> int:
    """An experiment's files, the newest version of each."""
    options.prefix = _experiment(options)
    with reaching.looking(options) as connection:
        found = reaching.files(options, connection).each(latest=not options.verbose)
        if options.json:
            show.array(map(show.plain, found))
        else:
            report.table(found)
    return 0


def _experiment(options: Namespace) -> str:
    prefix = str(options.prefix or default_prefix() or "")
    if is_glob(prefix) or not prefix:
        what = f"-p {prefix} names no single experiment" if prefix else "no experiment is named"
        raise error(Code.INVALID_PREFIX, what, "pass -p namespace/project/experiment, or set ML_DASH_PREFIX")
    return prefix
