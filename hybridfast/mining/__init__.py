"""Hard negatives: the passages that a model mistakes for answers."""
