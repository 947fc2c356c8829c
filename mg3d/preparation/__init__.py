"""Raw CT-RATE and CTRG folders -> the Arrow files of pre-training: scan, geometry, HU, shards, quarantine, leak check, index."""
