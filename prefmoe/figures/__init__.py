"""How results are drawn (without torch)."""
