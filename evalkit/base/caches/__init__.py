"""Small answers that are kept because they follow from nothing that has changed."""
