"""What came out: estimates with their intervals, and the tables (without torch)."""
