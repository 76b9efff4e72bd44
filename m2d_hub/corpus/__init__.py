"""Many audio files to one output of embeddings."""
