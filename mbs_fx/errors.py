"""The one error class of the package."""


class MBSError(Exception):
    """Something the caller can act on: the message names the place, what was wrong, and what to do."""
