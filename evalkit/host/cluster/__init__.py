"""Runs on a Slurm cluster: the plan's shards as a job array, and a job that finishes them.

`submit` plans and sends; `checks` looks at everything before; `script` makes the batch scripts, a
pure function; `submission` is the folder of what was sent; `slurm` calls Slurm; `site` has the
cluster's settings; `watch` shows the progress. It runs no model and downloads nothing: `stage` did
that before.
"""
