"""Numbers from arrays; nothing here knows of models, files or reports."""
