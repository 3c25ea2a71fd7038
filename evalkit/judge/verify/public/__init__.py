"""What can be checked of a public pack, whose texts are hidden, and of documents revealed later."""
