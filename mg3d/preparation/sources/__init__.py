"""One scan per data set as it is distributed: from folders and tables to volume records, before any voxel is read."""
