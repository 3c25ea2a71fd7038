"""This host and the software on it: versions, GPUs, steering variables, shipped files."""
