"""Runs evalkit's own command lines in its image, with docker, podman or apptainer.

`command` makes the command line, a pure function; `runtimes` finds what this host has; `work` finds
what a command line needs of this host; `start` runs it. The host needs the light install only. The
launcher builds and downloads no image, and needs no more rights than the owner of the files has.
"""
