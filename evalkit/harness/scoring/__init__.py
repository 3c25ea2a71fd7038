"""What scoring needs beside lm-eval: who is to blame, which packages, verdicts on programs."""
