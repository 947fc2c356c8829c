"""Image encoders: a volume in, a pyramid of feature maps out."""
