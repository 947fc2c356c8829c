"""No test asks the network. Set before anything reads it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
