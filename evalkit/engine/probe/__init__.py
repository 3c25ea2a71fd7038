"""Does a level give this model's own log-probabilities? Tried on a small copy before the plan is
made, and on the real weights when a worker starts, against an unbatched forward pass.
"""
