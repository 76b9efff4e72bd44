"""Pre-training of M2D, M2D-X and MSM-MAE."""
