"""Readers of plan, journal and samples, each a stream with limits."""
