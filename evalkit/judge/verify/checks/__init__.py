"""The single checks of `verify`: each takes what the readers found and gives its findings."""
