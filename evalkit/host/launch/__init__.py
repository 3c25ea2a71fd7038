"""Runs evalkit's own command lines in its image: what docker, podman or apptainer is told.

`command` makes the command line, a pure function; `runtimes` asks this host what it has; `work`
finds what a command line needs of this host; `start` runs it. The host needs the light install and
nothing else. It builds no image, fetches none, and never asks for more privileges than a file's
owner has.
"""
