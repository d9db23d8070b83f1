"""Where the `sfumato` command starts."""

from sfumato.cli import commands  # noqa: F401  (importing it registers the commands)
from sfumato.cli.app import app, run


def main() -> None:
    """Run `sfumato` and exit."""
    run(app)
