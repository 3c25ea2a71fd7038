"""Level tree: rows of a batch share prefixes as branches of a tree do, with our own attention."""
