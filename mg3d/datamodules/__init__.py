"""The Lightning data module of pre-training, and the order in which studies are drawn."""
