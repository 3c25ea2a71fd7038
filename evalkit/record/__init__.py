"""What a run leaves: journal, record, audit log, signatures, packs; and how they are read again.

Writing is for the run's own process. `reading` treats every file as a stranger's.
"""
