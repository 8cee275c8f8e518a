"""Who answers: vision language models, and what turns questions and pictures into their inputs."""
