"""Typed settings: schema, presets, and parsing of the command line."""
