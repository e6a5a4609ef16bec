"""The error class of the package, and the one kind of it that the package itself asks for."""


class MBSError(Exception):
    """Something the caller can act on: the message names the place, what was wrong, and what to do."""


class SizedByValuesError(MBSError):
    """No shapes can be inferred, since values decide on one of them."""
