"""Questions about the method that take runs of their own: the protocol and tuning."""
