"""What can be said about a record: verify, audit, reproduce, compare.

Verdicts only; nothing here changes a record.
"""
