"""The one error of this package."""


class DataError(ValueError):
    """The data cannot be used as it is. The message is a sentence for the user with the next thing to try."""

    exit_code = 2
