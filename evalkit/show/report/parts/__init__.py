"""The parts of a page, each made from a record alone."""
