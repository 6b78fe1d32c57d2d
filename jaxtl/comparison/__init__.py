"""Which network? Candidates measured on the user's own images."""
