"""ML-Dash: hand a training run's files to a local daemon.

    from ml_dash import Experiment

    with Experiment(prefix="alice/cv/resnet").run as exp:
        exp.files("checkpoints").upload("model.pt")

Importing this opens nothing, starts nothing and sends nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_dash.errors import MLDashError, NetworkError, StorageError
    from ml_dash.experiment import Experiment, ml_dash_experiment
    from ml_dash.result import FileResult
    from ml_dash.unacknowledged import BackgroundResult

__all__ = [
    "BackgroundResult",
    "Experiment",
    "FileResult",
    "MLDashError",
    "NetworkError",
    "StorageError",
    "ml_dash_experiment",
]

_HOMES = {
    "BackgroundResult": "ml_dash.unacknowledged",
    "Experiment": "ml_dash.experiment",
    "FileResult": "ml_dash.result",
    "MLDashError": "ml_dash.errors",
    "NetworkError": "ml_dash.errors",
    "StorageError": "ml_dash.errors",
    "ml_dash_experiment": "ml_dash.experiment",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: the daemon, which shares the wire, needs none of them."""
    if name == "__version__":
        from ml_dash.release import release  # noqa: PLC0415

        return release()
    if name not in _HOMES:
        raise AttributeError(f"module 'ml_dash' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
