"""A text as it is written: what is done to its logits, how it thinks, and what replays it."""
