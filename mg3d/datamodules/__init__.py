"""Lightning data modules: one per data set, their mixture, and the order in which studies are drawn."""
