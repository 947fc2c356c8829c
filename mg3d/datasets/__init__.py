"""From a row of an Arrow index to a sample and a batch: reading, tokenising, masking, windowing."""
