"""What a run starts from: suite, lock, model and tokenizer, and how they are fetched.

Here names become files with digests. Weights are not loaded and tasks not built here.
"""
