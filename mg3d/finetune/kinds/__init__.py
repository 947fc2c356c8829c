"""Kinds of tasks: what each does with an encoder, a batch and a table of predictions."""
