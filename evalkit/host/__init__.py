"""Where evalkit runs: containers, Slurm clusters, staged files, the drivers and limits of a
machine.

It computes no answer and judges no record.
"""
