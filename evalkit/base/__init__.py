"""What every other room needs: errors, canonical JSON and files, schemas, events, statistics, what
software this is.

Nothing here knows what a suite, a plan or a record is, and nothing imports another room.
"""
