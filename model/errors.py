"""What can be wrong with a model, as sentences for the user."""


class ModelUnavailable(RuntimeError):
    """The model cannot be had on this machine as it is. The message says what to do."""

    exit_code = 3


class UnsupportedModel(ValueError):
    """The model was found, but Vitrine cannot do with it correctly what was asked."""

    exit_code = 2
