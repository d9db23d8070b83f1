"""The command line: one command is one library call; nothing else lives here."""
