"""What is asked of a model, and in which words: single requests, chat settings."""
