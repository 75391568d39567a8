"""The pages say what the code does. `python -m tests.unit.test_docs` writes the parts that are made from it anew."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeGuard, get_args, get_origin, get_type_hints

import pytest

from ml_dash import experiment, files, messages, metrics, params, result, run, wire
from ml_dash.cli.parser import COMMANDS, EXAMPLES, actions_of, build
from ml_dash.errors import TABLE
from ml_dashd import config, logs
from ml_dashd.core.runs import MAX_PARAMS
from ml_dashd.core.states import diagram
from ml_dashd.edge import connection, descriptors, slots
from ml_dashd.edge.metrics import PrometheusMeter
from ml_dashd.flow import audit, bell, browse, fetch, operations, pinning, prune, runs
from tests.harness import SOURCE, fault_points
from tests.unit import api_pages

ROOT = Path(__file__).parents[2]
DEFAULT = re.compile(r"^# (\w+ = .*)$", re.MULTILINE)


# ---- what is made from the code


def _states() -> str:
    return f"```mermaid\n{diagram()}\n```"


def _messages() -> str:
    lines = ["| kind | message | fields | descriptors | payload |", "|---|---|---|---|---|"]
    for kind, message in {**messages.REQUESTS, **messages.REPLIES}.items():
        most = max(message.descriptors)
        beside = "" if not most else "1" if 0 not in message.descriptors else "0 or 1"
        lines.append(f"| {kind} | `{message.__name__}` | {_fields(message)} | {beside} | {message.limit // 1024} KiB |")
    lines += ["", "Parts of messages:", "", "| | fields |", "|---|---|"]
    lines += [
        f"| `{part.__name__}` | {_fields(part)} |"
        for part in (
            messages.Place,
            messages.Share,
            messages.Described,
            messages.Origin,
            messages.Record,
            messages.Count,
            messages.Limits,
            messages.Check,
            messages.Refusal,
            messages.NewRow,
            messages.Row,
            messages.Metric,
            messages.ExperimentRecord,
            messages.SetRecord,
            messages.Finding,
        )
    ]
    return "\n".join(lines)


def _fields(message: Any) -> str:
    hints = get_type_hints(message)
    return ", ".join(
        f"`{field.name}{'' if field.default is dataclasses.MISSING else '?'}` {_type(hints[field.name])}"
        for field in dataclasses.fields(message)
    )


def _type(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    options = [option for option in get_args(hint) if option not in (type(None), Ellipsis)]
    if get_origin(hint) is tuple:
        return f"{_type(options[0])}[]"
    return _type(options[0]) if options else hint.__name__


def _errors() -> str:
    lines = ["| code | exception | hint |", "|---|---|---|"]
    for code, entry in TABLE.items():
        builtin = next(base for base in entry.exception.__mro__ if base.__module__ == "builtins")
        raised = f"`{entry.exception.__name__}`" + (f" ({builtin.__name__})" if builtin is not Exception else "")
        lines.append(f"| `{code}` | {raised} | {entry.hint} |")
    return "\n".join(lines)


class LogCall(NamedTuple):
    event: str
    level: str
    fields: tuple[str, ...]


def log_calls() -> list[LogCall]:
    """Every call of a logger in the daemon: an event's name, and fields whose names stand beside it."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [_log_call(path.name, function, call) for call in ast.walk(function) if _is_log_call(call)]
    assert len(found) > 20
    return found


def _is_log_call(node: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
        and node.func.attr in ("debug", "info", "warning", "error", "exception", "critical")
    )


def _log_call(page: str, function: ast.AST, call: ast.Call) -> LogCall:
    (said,) = call.args
    assert isinstance(said, ast.Constant), f"{page} line {call.lineno}: an event has one name, and its fields in extra"
    assert re.fullmatch(r"[a-z_]+", said.value), f"{page} line {call.lineno}: {said.value!r} is no name of an event"
    extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), ast.Dict([], []))
    if isinstance(extra, ast.Name):
        extra = next(
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == extra.id
        )
    assert isinstance(extra, ast.Dict), f"{page} line {call.lineno}: give extra a dict of literal names"
    fields = [ast.literal_eval(key) for key in extra.keys if key is not None]
    hidden = {"time", "level", "logger", "event", "traceback"} & set(fields)
    assert not hidden, f"{page} line {call.lineno}: every line has a {hidden} of its own"
    if call.func.attr == "exception" or any(keyword.arg == "exc_info" for keyword in call.keywords):
        fields.append("traceback")
    return LogCall(said.value, {"exception": "error"}.get(call.func.attr, call.func.attr), tuple(fields))


def _events() -> str:
    calls = [*log_calls(), LogCall("library_message", "warning", ("message",))]
    lines = ["| event | level | fields | when |", "|---|---|---|---|"]
    for event, when in logs.EVENTS.items():
        mine = [call for call in calls if call.event == event]
        levels = ", ".join(sorted({call.level for call in mine}))
        fields = ", ".join(f"`{name}`" for name in dict.fromkeys(name for call in mine for name in call.fields))
        lines.append(f"| `{event}` | {levels} | {fields} | {when} |")
    return "\n".join(lines)


def _metrics() -> str:
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for each in PrometheusMeter("").described:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.meaning} |")
    return "\n".join(lines)


def _limits() -> str:
    defaults = config.DaemonConfig()
    largest = max(message.limit for message in messages.REQUESTS.values())
    rows = [
        ("connections, all users together", f"{defaults.max_connections:,} (`daemon.max_connections`)"),
        ("to say Hello, to finish a frame, to take a reply", f"{defaults.peer_timeout:g} s (`daemon.peer_timeout`)"),
        ("the payload of a request, by its kind", f"64 to {largest // 1024} KiB"),
        ("elements of a container; containers; levels", _list(wire.MAX_ITEMS, wire.MAX_CONTAINERS, wire.MAX_DEPTH)),
        ("descriptors beside a frame", str(wire.MAX_DESCRIPTORS)),
        ("whole requests of a connection that wait, before it is read no further",
         f"{connection.QUEUED_BYTES // 1024} KiB, {connection.QUEUED_DESCRIPTORS} descriptors"),
        ("slots of a connection that are written into; that are kept for its next saves",
         f"{slots.MAX_SLOTS}; {slots.KEEP_HELD + slots.KEEP_FREE}"),
        ("ids in a request", f"{_most(messages.Get, 'ids'):,}"),
        ("records in a page", f"{_most(messages.Page, 'records'):,}, {browse.PAGE_BYTES >> 20} MiB of texts"),
        ("one wait", f"{bell.MAX_WAIT_MS // 1000} s; the library asks again"),
        ("looks at journal and catalog at once, of one user; of all", _list(*browse.LOOKS)),
        ("reports of the status", _list(*operations.REPORTS)),
        ("files being pinned", _list(*pinning.PINS)),
        ("files being copied before the answer", _list(*pinning.COPIES)),
        ("looks at experiments and rows", _list(*runs.RUN_LOOKS)),
        ("metrics of an experiment; in a call; characters of a row",
         _list(messages.METRICS, messages.ROWS, messages.ROW_CHARACTERS)),
        ("parameters of an experiment; their bytes", _list(MAX_PARAMS, messages.PARAMS_BYTES)),
        ("passes for a checksum", _list(*browse.HASHES)),
        ("downloads", _list(*fetch.FETCHES)),
        ("requests that verify what is stored", _list(*audit.AUDITS)),
        ("ids in a request to verify, or to try again", f"{_most(messages.Verify, 'ids'):,}"),
        ("prunings", _list(*prune.PRUNES)),
        ("descriptors kept for the daemon itself", f"{descriptors.OWN}, at most half of the limit"),
        ("of the others, up to where there are connections; slots; sources held open; leases for `touch`",
         "; ".join(f"{getattr(descriptors, f'FOR_{of}'):.0%}" for of in ("CONNECTIONS", "SLOTS", "PINS", "LEASES"))),
        ("a file; one that travels inside its request", f"100 GB; {messages.INLINE_BYTES // 1024} KiB"),
    ]  # fmt: skip
    return "\n".join(["| what | at most |", "|---|---|", *(f"| {what} | {most} |" for what, most in rows)])


def _most(message: Any, field: str) -> int:
    size: int = get_args(get_type_hints(message, include_extras=True)[field])[1].size
    return size


def _list(*bounds: int) -> str:
    return "; ".join(f"{bound:,}" for bound in bounds)


def _commands() -> str:
    commands = next(each for each in actions_of(build()) if isinstance(each, argparse._SubParsersAction))
    lines = []
    for name, command in commands.choices.items():
        lines += [f"## ml-dash {name}", "", f"{command.description}", ""]
        rows = [_argument(each) for each in actions_of(command) if each.dest not in SHARED]
        lines += ["| | |", "|---|---|", *rows, ""] if rows else []
        lines += ["```", *(line.strip() for line in EXAMPLES[name].splitlines()), "```", ""]
    return "\n".join(lines).rstrip()


SHARED = ("help", "json", "socket", "root", "version")


def _argument(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings)
    value = str(action.metavar) if not action.choices else "|".join(map(str, action.choices))
    shown = f"{name} {value}" if name and action.nargs != 0 else name or value
    return "| `{}` | {} |".format(shown.replace("|", "\\|"), action.help)


MADE = {
    ("docs/cli.md", "commands"): _commands,
    ("ARCHITECTURE.md", "states"): _states,
    ("PROTOCOL.md", "messages"): _messages,
    ("PROTOCOL.md", "errors"): _errors,
    ("docs/logs.md", "events"): _events,
    ("docs/operations.md", "metrics"): _metrics,
    ("SECURITY.md", "limits"): _limits,
}


def _between(page: str, name: str, text: str) -> str:
    return re.sub(
        rf"(<!-- {name}: .*? -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{text}\n{found[2]}",
        page,
        count=1,
        flags=re.DOTALL,
    )


@pytest.mark.parametrize(("page", "name"), MADE, ids=lambda part: part)
def test_what_is_made_from_the_code_is_up_to_date(page: str, name: str) -> None:
    text = (ROOT / page).read_text()
    assert _between(text, name, MADE[page, name]()) == text, "run `python -m tests.unit.test_docs`"


# ---- what is written by hand


def test_every_setting_is_explained_with_its_default() -> None:
    text = (ROOT / "config/ml-dashd.toml").read_text()
    shown = tomllib.loads(DEFAULT.sub(r"\1", text))
    defaults = dataclasses.asdict(config.Config())
    del defaults["embedded"]
    assert shown == {table: {key: _plain(value) for key, value in keys.items()} for table, keys in defaults.items()}
    for key in DEFAULT.finditer(text):
        before = text[: key.start()].rstrip("\n").rpartition("\n")[2]
        assert before.startswith("# "), f"{key[1]} has no reason above it"
    config.parse(tomllib.loads(text))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_every_fault_point_is_named_once() -> None:
    text = (ROOT / "DURABILITY.md").read_text()
    stages = (
        "pin|accept|settle|copies|lease|seal|journal|catalog|runs|upload|single|batch|local|finish|duplicate|prune"
        "|reclaim|reconcile|supersede|inbox|sets"
    )
    named = re.findall(rf"`((?:{stages})\.\w+)`", text)
    assert sorted(named) == fault_points()


def test_every_page_is_linked() -> None:
    text = (ROOT / "README.md").read_text()
    assert {page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text} == set()


def test_every_test_that_a_page_names_exists() -> None:
    """`tests/crash/test_kill_rows.py`, or with the name of a test: `tests/crash/test_kill_rows.py::test_…`."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    named = {name for page in pages for name in re.findall(r"tests/[\w/]*\w+(?:\.py(?:::\w+)?)?", page.read_text())}
    missing = set()
    for name in named:
        path, _, test = name.partition("::")
        there = (ROOT / path).exists()
        if not there or (test and not re.search(rf"^(?:async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE)):
            missing.add(name)
    assert missing == set()


@pytest.mark.parametrize("page", ["fleet.md", "install.md", "s3-servers.md"])
def test_settings_that_a_page_shows_are_taken(page: str) -> None:
    shown = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert shown
    for block in shown:
        config.parse(tomllib.loads(block))


def test_manifests_mount_what_the_settings_name() -> None:
    """Paths, port and sockets are those of the settings beside them."""
    page = (ROOT / "docs/fleet.md").read_text().partition("## Kubernetes")[2].partition("## Slurm")[0]
    (settings,) = (config.parse(tomllib.loads(block)) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
    daemon, trainer = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    sockets = str(Path(settings.daemon.socket).parent)
    assert {*re.findall(r"mountPath: ([^}]+)}", daemon)} == {"/etc/ml-dash", settings.daemon.state_dir, sockets}
    assert {*re.findall(r"hostPath: {path: ([^,]+),", daemon)} == {settings.daemon.state_dir, sockets}
    assert {*re.findall(r"(?:mountPath|path): ([^,}]+)[,}]", trainer)} == {sockets}
    assert settings.store.credentials_file.startswith("/etc/ml-dash/")
    probes = re.findall(r"httpGet: {host: ([^,]+), port: (\d+), path: (/\w+)}", daemon)
    assert probes == [(*settings.http.listen.split(":"), path) for path in ("/readyz", "/healthz")]
    (patience,) = map(int, re.findall(r"terminationGracePeriodSeconds: (\d+)", daemon))
    assert patience >= settings.daemon.drain_timeout + 60
    assert "command: [ml-dashd, run, --config, /etc/ml-dash/ml-dashd.toml]" in daemon


def test_every_log_event_is_explained_and_none_that_is_gone() -> None:
    assert {call.event for call in log_calls()} | {"library_message"} == set(logs.EVENTS), "mend EVENTS in logs.py"


def test_every_route_is_explained() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    routes = re.findall(r'\("(/[\w.]*)", self\._', (SOURCE / "edge/http_pages.py").read_text())
    assert len(routes) == 5
    assert {route for route in routes if f"`{route}`" not in text} == set()


def test_every_module_has_its_line() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    names = {path.name for path in SOURCE.rglob("*") if path.suffix in (".py", ".sql")} - {"__init__.py"}
    assert {name for name in names if f"{name}`" not in text} == set()


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=\[]", each)[0] for group in groups for each in group}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_links_lead_somewhere() -> None:
    lost = set()
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            there = page.parent / target if target else page
            if not there.exists() or (heading and heading not in _anchors(there)):
                lost.add(f"{page.name} links to {target}#{heading}")
    assert lost == set()


@cache
def _anchors(page: Path) -> set[str]:
    """What may stand behind the # of a link to a page: its headings, as GitHub writes them there."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert {name for name in COMMANDS if f"ml-dash {name}" not in text} == set()


@pytest.mark.parametrize(
    "module", [experiment, files, metrics, params, result, run], ids=lambda module: module.__name__
)
def test_public_names_have_docstrings(module: Any) -> None:
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", "") != module.__name__:
            continue
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
            for method, function in vars(thing).items():
                if not method.startswith("_") and inspect.isfunction(function) and not _inherits(thing, method):
                    assert inspect.getdoc(function), f"{name}.{method}"


def _inherits(thing: type, method: str) -> bool:
    return any(method in vars(base) for base in thing.__mro__[1:])


if __name__ == "__main__":
    for (page, name), make in MADE.items():
        path = ROOT / page
        path.write_text(_between(path.read_text(), name, make()))
    api_pages.rewrite()
