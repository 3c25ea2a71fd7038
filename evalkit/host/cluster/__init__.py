"""Runs on a Slurm cluster: the plan's shards as a job array, and a job that finishes them.

`submit` plans and sends, `checks` looks at everything before, `script` makes the batch scripts,
`watch` shows the progress. No model runs here and nothing is downloaded (`stage` did that).
"""
