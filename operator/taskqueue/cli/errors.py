"""What ends a command."""


class CommandFailed(Exception):
    """A command cannot be carried out; the text says why and what to do."""
