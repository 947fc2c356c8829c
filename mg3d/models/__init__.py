"""The networks: tensors in, tensors out; nothing here knows of disk, logging or settings."""
