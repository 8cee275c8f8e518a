"""What can be wrong with a prompt that a backbone is to read."""


class CollationError(ValueError):
    """A conversation that cannot be encoded: an unreadable picture, or a template that loses the question."""


class PromptError(ValueError):
    """A prompt that the model cannot read as it was written."""


class PromptTooLong(PromptError):
    """A prompt of more tokens than the model has positions."""
