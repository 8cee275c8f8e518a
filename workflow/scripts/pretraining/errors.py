"""What pre-training refuses."""


class PretrainingError(ValueError):
    """A backbone that nothing here knows how to make, or one whose pre-training has gone wrong."""
