"""Lightning's side of the data: which study is drawn when, by which rank, from which data set."""
