"""Results that lm-eval wrote, of any version, read into the form of today's."""
