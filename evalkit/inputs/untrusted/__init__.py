"""What a stranger wrote, read within limits: YAML of plain values, groups that name each other."""
