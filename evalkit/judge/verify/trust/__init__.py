"""Who vouches for a record, and when: signatures, statements, seals."""
