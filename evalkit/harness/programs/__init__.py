"""Tasks whose answers are programs: what is graded, and the verdicts that are scored by."""
