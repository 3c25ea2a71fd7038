"""One command from the suite to the record: prepare, plan, start workers, execute, score, finish.

A run's folder and its workers are managed here. The engine computes, the harness scores.
"""
