"""Users, questions and pictures: the benchmark, its readers and its prompts."""
