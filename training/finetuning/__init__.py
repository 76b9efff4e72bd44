"""Fine-tuning of a whole model with a head."""
