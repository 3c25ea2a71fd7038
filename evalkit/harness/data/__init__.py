"""How lm-eval's tasks get their documents: pinned, sealed, and known by the digest of each row."""
