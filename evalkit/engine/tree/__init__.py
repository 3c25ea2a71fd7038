"""Level A: a batch's rows share prefixes as the branches of a tree do, with our own attention."""
