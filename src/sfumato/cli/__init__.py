"""The command line: one command is one library call; nothing else lives here."""

from sfumato.cli.app import main

__all__ = ["main"]
