"""Typed settings: the schema, the recipes over it, and the way from words on a command line to them."""
