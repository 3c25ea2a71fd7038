"""The requests of a suite, as lm-eval builds them and as the lock pins them."""
