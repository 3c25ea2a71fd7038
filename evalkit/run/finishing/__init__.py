"""From answers to a record: scores, verdicts on programs, answers carried over."""
