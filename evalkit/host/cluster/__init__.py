"""Runs on a Slurm cluster: the plan's shards as a job array, and a job that finishes them.

`submit` plans and sends; `script` writes the batch scripts, a pure function; `submission` is what
was sent, on the disk; `slurm` asks and tells Slurm; `site` is what a cluster wants to hear with
every job; `watch` says how far it all is. It runs no model and fetches nothing: `stage` did that
before.
"""
