"""python -m tests.servers.install: what the suites need beside their own packages, before the first test asks for it.

`make test` runs it beside the unit tests, which need none of it and keep one processor busy. What cannot be installed
here is passed over: the tests that need it say so.
"""

from contextlib import suppress
from pathlib import Path

from tests.servers.ceph import ceph_commands
from tests.servers.debian import NotInstallableError
from tests.servers.environments import EnvironmentUnavailableError, frameworks_python, server_python
from tests.servers.shells import SHELLS, shell_command

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def main() -> None:
    """In the order in which the suites come to them."""
    for name in ("swift", "localstack", "mongodb"):
        with suppress(EnvironmentUnavailableError):
            server_python(name)
    for shell in SHELLS:
        with suppress(NotInstallableError):
            shell_command(shell)
    with suppress(NotInstallableError):
        ceph_commands()
    with suppress(EnvironmentUnavailableError):
        frameworks_python()
    for name in ("ml-dash-0.11", "wandb"):
        with suppress(EnvironmentUnavailableError):
            server_python(name, pins=_BENCHMARKS)


if __name__ == "__main__":
    main()
