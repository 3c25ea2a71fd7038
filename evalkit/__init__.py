"""evalkit: reproducible evaluation of language models, with a record that anyone can check."""

__version__ = "0.1.0"
