"""Disable network access in all tests. Set before any library reads these variables."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
