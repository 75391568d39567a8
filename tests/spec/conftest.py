"""The promise to users, line by line: `blocks.md`, and twelve faults of an earlier library that scripts work around."""

from __future__ import annotations

import pytest

from ml_dash import Experiment
from ml_dash.files import FileSet
from tests.scenario.conftest import exp, held, make_root, root, service

__all__ = ["exp", "held", "make_root", "root", "service"]

ABSENT = frozenset(
    {
        "files.save_torch", "files.save_pkl", "files.save_fig", "files.save_video", "files.save_image", "files.update",
        "experiment.params", "experiment.metrics",
    }
)  # fmt: skip
"""Calls that are promised and not there yet. tests/spec/test_blocks.py holds it to what is really so."""


def is_there(call: str) -> bool:
    """Whether a promised call is there: "files.save_torch", "experiment.params"."""
    owner, _, name = call.partition(".")
    return hasattr({"files": FileSet, "experiment": Experiment}[owner], name)


def needs(*calls: str) -> pytest.MarkDecorator:
    """A test that fails, and must, until these calls are there."""
    missing = sorted(ABSENT & set(calls))
    return pytest.mark.xfail(bool(missing), reason=f"not there yet: {', '.join(missing)}", strict=True)
