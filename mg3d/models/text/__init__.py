"""Text encoders: token ids in, one vector per token out."""
