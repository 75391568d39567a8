"""docs/api: a page for each public call. What the code says of it is written here; the rest of a page is by hand."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ml_dash import arguments, errors, experiment, files, metrics, params, result, run, sets, unacknowledged
from ml_dash.errors import TABLE, Code

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "api"
EMPTY = inspect.Parameter.empty
WIDTH = 100
"""Of a signature in one line."""


class Call(NamedTuple):
    """A public call, or an object that one returns, as the code has it."""

    page: str
    """Its page is docs/api/{page}.md."""
    typed: str
    """How it is written in a script."""
    doc: str
    signature: inspect.Signature | None
    """None of an object that the library makes."""
    attributes: Mapping[str, tuple[str, str]]
    """What can be read of an object: types and what they are."""


# ---- which calls there are

OWNERS: dict[type, tuple[str, str]] = {
    experiment.Experiment: ("experiment", "exp"),
    run.Run: ("run", "exp.run"),
    params.Params: ("params", "exp.params"),
    metrics.Metrics: ("metrics", "exp.metrics"),
    metrics.Metric: ("metric", 'exp.metrics("train")'),
    files.Files: ("files", "exp.files"),
    sets.Checkpoint: ("Checkpoint", "ck"),
    sets.SavedCheckpoint: ("SavedCheckpoint", "saved"),
    result.FileResult: ("FileResult", "result"),
}
"""Whose methods are public calls; how the names of their pages begin, and how a script names them."""
OBJECTS: dict[str, type] = {
    "Experiment": experiment.Experiment,
    "run": run.Run,
    "Checkpoint": sets.Checkpoint,
    "SavedCheckpoint": sets.SavedCheckpoint,
    "FileResult": result.FileResult,
    "BackgroundResult": unacknowledged.BackgroundResult,
    "MLDashError": errors.MLDashError,
}
"""What has a page beside those of its calls."""
FRAMEWORKS = ("dcp", "lightning", "huggingface")
"""Modules that need a library which is not here: they are read, not imported."""
WITHIN: dict[type, set[str]] = {
    run.Run: {"opened"},
    metrics.Metrics: {"append", "read"},
    files.Files: {"each_of", "writing", "failed_in_run", "wait_all", "place"},
    sets.Checkpoint: {*dir(files.Files)},  # its savers are those of exp.files
}
"""What other modules of the library call, and what has a page elsewhere."""
GROUPS: dict[str, tuple[str, ...]] = {
    "Experiments and runs": (
        "Experiment", "run", "run.start", "run.complete", "run.fail", "run.cancel", "experiment.flush",
        "ml_dash_experiment",
    ),
    "Parameters and metrics": (
        "params.set", "params.get", "metrics", "metrics.log", "metrics.names", "metrics.flush", "metric.log",
        "metric.read", "metric.rows", "metric.flush",
    ),
    "Handing files over": ("files", "files.upload", "files.upload_many", "files.each_uploaded", "files.flush"),
    "Saving objects": (
        "files.save", "files.save_json", "files.save_text", "files.save_blob", "files.save_pkl", "files.save_torch",
        "files.save_safetensors", "files.save_npz", "files.save_image", "files.save_fig", "files.save_video",
    ),
    "Finding and reading": (
        "files.list", "files.each", "files.exists", "files.read_text", "files.download", "files.fetch",
    ),
    "Changing and deleting": (
        "files.update", "files.duplicate", "files.prune", "files.each_pruned", "files.delete", "files.discard",
    ),
    "Checkpoints of several ranks": (
        "files.checkpoint", "Checkpoint", "Checkpoint.wait", "files.latest_checkpoint", "files.checkpoints",
        "SavedCheckpoint", "SavedCheckpoint.download", "SavedCheckpoint.delete", "SavedCheckpoint.is_whole",
    ),
    "Results and errors": (
        "FileResult", "FileResult.wait", "FileResult.progress", "FileResult.refresh", "BackgroundResult", "MLDashError",
    ),
    "Frameworks": (
        "dcp.MLDashWriter", "dcp.MLDashReader", "lightning.MLDashCheckpointIO", "huggingface.MLDashCallback",
    ),
}  # fmt: skip
"""The pages by subject, in the order of the index."""


@cache
def calls() -> dict[str, Call]:
    """Every public call by its page."""
    decorator = experiment.ml_dash_experiment
    alone = Call("ml_dash_experiment", "ml_dash_experiment", _doc(decorator), inspect.signature(decorator), {})
    return {call.page: call for call in (*_objects(), *_methods(), *_read(), alone)}


def _objects() -> Iterator[Call]:
    for page, kind in OBJECTS.items():
        signature = _without_self(kind.__init__) if kind is experiment.Experiment else None
        yield Call(page, "exp.run" if page == "run" else page, _doc(kind), signature, dict(_attributes(kind)))


def _methods() -> Iterator[Call]:
    for owner, (page, typed) in OWNERS.items():
        for name, method in _public(owner).items():
            below = "" if name == "__call__" else f".{name}"
            yield Call(page + below, typed + below, _doc(method), _without_self(method), {})


def _public(owner: type) -> dict[str, Callable[..., Any]]:
    """Its own calls: none of a dict's, and none under a second name."""
    found: dict[str, Callable[..., Any]] = {}
    for name, thing in _members(owner):
        second = thing in found.values() or (issubclass(owner, dict) and hasattr(dict, name))
        if inspect.isfunction(thing) and not second and name not in WITHIN.get(owner, set()):
            found[name] = thing
    return found


def _attributes(kind: type) -> Iterator[tuple[str, tuple[str, str]]]:
    docs: dict[str, str] = {}
    for name, thing in _members(kind):
        getter = thing.fget if isinstance(thing, property) else getattr(thing, "func", None)
        if getter is not None and name not in WITHIN[files.Files]:
            docs[name] = _doc(getter) or docs[name]  # else that of what it overrides
            yield name, (str(inspect.signature(getter).return_annotation), docs[name])


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Its public members and `__call__`, those of its bases first."""
    for home in reversed(kind.__mro__):
        if home.__module__.startswith("ml_dash"):
            yield from ((name, it) for name, it in vars(home).items() if name == "__call__" or not name.startswith("_"))


def _read() -> Iterator[Call]:
    """The classes of the frameworks' modules, by their source."""
    for module in FRAMEWORKS:
        tree = ast.parse((ROOT / "client/ml_dash" / f"{module}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                init = next((each for each in node.body if getattr(each, "name", "") == "__init__"), None)
                assert isinstance(init, ast.FunctionDef), node.name
                doc = inspect.cleandoc(ast.get_docstring(node) or "")
                yield Call(f"{module}.{node.name}", node.name, doc, signature_of(init.args), {})


def signature_of(given: ast.arguments) -> inspect.Signature:
    defaults = [EMPTY] * (len(given.args) - len(given.defaults)) + [*map(ast.literal_eval, given.defaults)]
    kinds = [inspect.Parameter.POSITIONAL_OR_KEYWORD] * len(given.args)
    listed = [*zip(given.args, kinds, defaults, strict=True)]
    if given.kwarg is not None:
        listed.append((given.kwarg, inspect.Parameter.VAR_KEYWORD, EMPTY))
    assert not [*given.kwonlyargs, *given.posonlyargs], "nobody has asked for them here yet"
    return inspect.Signature([
        inspect.Parameter(each.arg, kind, default=default, annotation=ast.unparse(each.annotation))
        for each, kind, default in listed
        if each.annotation is not None  # self
    ])  # fmt: skip


def _without_self(method: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(method)
    _, *rest = signature.parameters.values()
    return signature.replace(parameters=rest)


def _doc(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


# ---- what is written of them

PART = re.compile(r"(<!-- (?:calls?|words): .*? -->\n)(.*?)(<!-- end -->)", re.DOTALL)
CELL = r"(?:[^|\\]|\\.)*"
ROW = re.compile(rf"^\| `([*\w]+)` \|{CELL}\| (?:({CELL}) )?\|$", re.MULTILINE)
ERROR = re.compile(rf"^\| `([A-Z_]+)` \| ({CELL}) \|{CELL}\|$", re.MULTILINE)
INDEX, SHARED = "README.md", "words.md"


def written(name: str, page: str) -> str:
    """A page, with all that the code says as the code says it now. What is by hand stays."""
    found = PART.search(page)
    assert found is not None, f"{name} has no part for what the code says"
    meanings = dict(ROW.findall(found[2]))
    if name == INDEX:
        said = _index()
    elif name == SHARED:
        said = _words(meanings)
    else:
        said = _said(calls()[name.removesuffix(".md")], meanings)
    page = f"{page[: found.start(2)]}{said}\n{page[found.end(2) :]}"
    return ERROR.sub(lambda row: f"| `{row[1]}` | {row[2]} | {_raised(row[1])} |", page)


def _said(call: Call, meanings: Mapping[str, str]) -> str:
    parts = [call.doc]
    if call.signature is not None:
        parts.insert(0, f"```python\n{_typed(call.typed, call.signature)}\n```")
        arguments_of = call.signature.parameters.values()
        if call.page.startswith("files") and "metadata" in call.signature.parameters:
            meanings = {**meanings, **words()}
        if arguments_of:
            parts.append(_table("argument", "type, default", (_argument(each, meanings) for each in arguments_of)))
    if call.attributes:
        rows = (_row(name, _code(kind), _line(doc)) for name, (kind, doc) in call.attributes.items())
        parts.append(_table("attribute", "type", rows))
    return "\n\n".join(parts)


def _words(meanings: Mapping[str, str]) -> str:
    """The words that every saver takes: their meanings by hand, once for all pages."""
    kinds = inspect.get_annotations(arguments.ManyWords)
    rows = (_row(name, _code(kind.__forward_arg__), meanings.get(name, "")) for name, kind in kinds.items())
    return _table("word", "type", rows)


@cache
def words() -> dict[str, str]:
    """What each of them means."""
    return dict(ROW.findall((PAGES / SHARED).read_text()))


def _typed(name: str, signature: inspect.Signature) -> str:
    shown: list[str] = []
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not any(one.startswith("*") for one in shown):
            shown.append("*")
        default = "" if each.default is EMPTY else f" = {each.default!r}"
        shown.append(f"{_starred(each)}: {each.annotation}{default}")
        if each.kind is each.POSITIONAL_ONLY:
            shown.append("/")
    returned = signature.return_annotation
    end = "" if returned in (EMPTY, "None") else f" -> {returned}"
    line = f"{name}({', '.join(shown)}){end}"
    return line if len(line) <= WIDTH else "\n".join([f"{name}(", *(f"    {one}," for one in shown), f"){end}"])


def _starred(each: inspect.Parameter) -> str:
    return f"**{each.name}" if each.kind is each.VAR_KEYWORD else each.name


def _argument(each: inspect.Parameter, meanings: Mapping[str, str]) -> str:
    default = "" if each.default is EMPTY else f", {_code(repr(each.default))}"
    unpacked = re.fullmatch(r"Unpack\[(\w+)\]", each.annotation)
    name = _starred(each)
    if unpacked is None:
        return _row(name, _code(each.annotation) + default, meanings.get(name, ""))
    taken = ", ".join(f"`{word}`" for word in typing.get_type_hints(getattr(arguments, unpacked[1])))
    return _row(name, _code(each.annotation), f"[words of every saver]({SHARED}): {taken}")


def _raised(code: str) -> str:
    entry = TABLE[Code(code)]
    builtin = next(base for base in entry.exception.__mro__ if base.__module__ == "builtins")
    kind = "" if builtin is Exception else f"{builtin.__name__}: "
    return _line(kind + entry.hint)


def _table(first: str, second: str, rows: Iterable[str]) -> str:
    return "\n".join([f"| {first} | {second} | |", "|---|---|---|", *rows])


def _row(name: str, kind: str, meaning: str) -> str:
    return f"| `{name}` | {kind} | {meaning} |" if meaning else f"| `{name}` | {kind} | |"


def _code(text: str) -> str:
    return "`{}`".format(text.replace("|", "\\|"))


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _index() -> str:
    """The calls by subject, each with the first sentence of what it does."""
    lines: list[str] = []
    for group, pages in GROUPS.items():
        lines += [f"## {group}", "", "| | |", "|---|---|"]
        for page in pages:
            call = calls()[page]
            first = re.split(r"(?<=\.)\s", call.doc, maxsplit=1)[0]
            lines.append(f"| [`{call.typed}`]({page}.md) | {_line(first).removesuffix('.')} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def names() -> list[str]:
    """The pages, the index and the one of the shared words among them."""
    return [INDEX, SHARED, *(f"{page}.md" for page in sorted(calls()))]


def rewrite() -> None:
    """Writes what the code says into every page: `python -m tests.unit.test_docs` calls it."""
    for name in names():
        path = PAGES / name
        path.write_text(written(name, path.read_text()))
