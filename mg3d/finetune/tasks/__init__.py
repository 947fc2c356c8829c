"""Task types: network, loss, predictions and scores of each."""
