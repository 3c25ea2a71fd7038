"""How lm-eval makes a standard error, in the words of a record."""

MEAN = "sample standard deviation / sqrt(n)"
POOLED = "pooled over leaf tasks"
UNWEIGHTED = "root of summed squares / number of leaf tasks"
BOOTSTRAP = "bootstrap"
