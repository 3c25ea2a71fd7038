"""Where evalkit runs: containers, Slurm, staged files, this machine's drivers and limits."""
