"""The modules that every other room needs: errors, canonical JSON and files, schemas, events,
statistics, and the stamp of software and hardware.

Nothing here knows of suites, plans or records, and nothing imports another room.
"""
