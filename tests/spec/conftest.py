"""The promise to users, line by line: `blocks.md`, and twelve faults of an earlier library that scripts work around."""

from __future__ import annotations

from tests.scenario.conftest import exp, held, make_root, root, service

__all__ = ["exp", "held", "make_root", "root", "service"]
