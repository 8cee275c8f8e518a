"""Pictures drawn for somebody: a small text-to-image model, a branch beside its text for users, and what reads them."""
