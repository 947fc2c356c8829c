"""The shared half of `downstream/`: from a folder's declaration to trained weights, predictions and tables."""
