"""lm-eval's own model classes as engines of a plan."""
