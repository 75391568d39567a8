"""`exp.params`: what an experiment was run with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from ml_dash import messages as m
from ml_dash.connection import Connection
from ml_dash.errors import Code, error
from ml_dash.values import object_text


class Params:
    """The parameters of an experiment, by dotted names; the daemon keeps them, for all processes together."""

    def __init__(self, connection: Connection, place: m.Place) -> None:
        self._connection = connection
        self._place = place

    def set(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> Self:
        """Adds parameters to those that there are, and returns itself: `set(lr=0.1, opt={"name": "adam"})`.

        A nested dict becomes dotted names, `opt.name`. A name that is set again has the newer value; one that was a
        group and is a value now, or the other way round, takes the place of what was there. What is set is on stable
        storage. Raises TypeError for what JSON can't hold, ValueError for `a` and `a.b` in one call, and for more than
        10,000 parameters or 1 MiB of them.
        """
        if values is not None and not isinstance(values, Mapping):
            what = f"params.set() was given {type(values).__name__}, not a dict"
            raise error(Code.INVALID_METADATA, what, "pass a dict; of an object, such as argparse's, vars(…)")
        flat: dict[str, Any] = {}
        for name, value in _flattened({**(values or {}), **named}, ""):
            if name in flat:
                raise error(Code.INVALID_ARGUMENT, f"the parameter {name!r} is given twice", "leave one of them out")
            flat[name] = value
        if flat:
            text = object_text(flat, "the parameter")
            self._connection.call(
                m.Done,
                lambda number: m.checked(m.SetParams(request=number, place=self._place, values=text)),
                silent_s=None,
            )
        return self

    def __repr__(self) -> str:
        return f"<Params of {self._place.namespace}/{self._place.project}/{self._place.experiment}>"

    log = set  # noqa: A003
    """The name that earlier releases gave it, too."""

    def get(self, flatten: bool = True) -> dict[str, Any]:
        """All parameters, whoever set them: by their dotted names, or, with `flatten=False`, as nested dicts.

        One of them is `get()["opt.lr"]`.
        """
        if not isinstance(flatten, bool):
            what = f"params.get() was given {flatten!r}, and flatten is True or False"
            raise error(Code.INVALID_ARGUMENT, what, f"get() returns all parameters; for one: get()[{flatten!r}]")
        answer = details_of(self._connection, self._place)
        flat: dict[str, Any] = json.loads(answer.params or "{}")
        return flat if flatten else _nested(flat)


def details_of(connection: Connection, place: m.Place, seen_rows: int = 0, timeout_ms: int = 0) -> m.Experiments:
    """An experiment with its parameters and metrics; once those have other than `seen_rows` rows, or time is up."""
    prefix = f"{place.namespace}/{place.project}/{place.experiment}"
    return connection.call(
        m.Experiments,
        lambda number: m.ListExperiments(
            request=number, prefix=prefix, details=True, seen_rows=seen_rows, timeout_ms=timeout_ms
        ),
    )


def _flattened(values: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if not isinstance(key, str | int | float):
            what = f"the parameter {above}{key!r} has a name of type {type(key).__name__}"
            raise error(Code.INVALID_METADATA, what, "use text for names")
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{name}.")
        else:
            yield name, dict(value) if isinstance(value, Mapping) else value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        inner = whole
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return whole
