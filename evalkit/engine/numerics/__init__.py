"""The settings that decide how numbers are computed, and the profile that computes precisely."""
