"""From a scan to an answer: what a trained model says of scans and texts that it was not trained on."""
