"""Errors that a user can act on: one or two sentences and the exit code of the command line.

Each names the file, field or flag, what was expected, what came, and what to do. The command line
prints the message alone; `--verbose` adds the traceback.
"""


class JwmError(Exception):
    """A failure with a message for the user."""

    exit_code = 1


class UsageError(JwmError, ValueError):
    """A wrong argument: an unknown format, a folder that is not empty, an impossible request."""

    exit_code = 2


class DataError(JwmError, ValueError):
    """Data that is missing, empty or broken."""

    exit_code = 3


class ResourceError(JwmError):
    """Not enough of something: memory, disk, a port."""

    exit_code = 4
