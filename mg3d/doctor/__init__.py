"""Whether a folder of raw volumes or of Arrow files is in order: what was found, what was expected, what to do."""
