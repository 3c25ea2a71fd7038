"""The rows of a score table, with published figures and the spread over seeds."""
