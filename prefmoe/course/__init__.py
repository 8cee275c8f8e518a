"""The course: what its units read, and what they check of a student's answers."""
