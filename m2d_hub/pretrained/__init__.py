"""From a model's name to verified weights on disk."""
