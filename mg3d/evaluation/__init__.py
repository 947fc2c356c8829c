"""What a trained model can do, as numbers with chance, baselines and intervals beside them: arrays in, builtins out."""
