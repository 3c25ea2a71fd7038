"""A run in one file, with its texts or without them."""
