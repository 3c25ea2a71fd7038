"""Everything that is decided before a run starts, and which engine it has."""
