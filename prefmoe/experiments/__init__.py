"""Questions about the protocol that take runs of their own."""
