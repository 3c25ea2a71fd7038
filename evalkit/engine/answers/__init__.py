"""A batch's answers: log-likelihoods and generated texts."""
