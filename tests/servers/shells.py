"""The shells whose completion is tested, beside bash, which is everywhere: from Debian."""

from tests.servers.debian import ensure_commands

SHELLS = ("zsh", "fish")


def shell_command(name: str) -> str:
    """The absolute path of a shell, which is installed first. Raises NotInstallableError."""
    return ensure_commands((name,), (name,))[name]
