"""Keys, signed statements, seals and timestamps."""
