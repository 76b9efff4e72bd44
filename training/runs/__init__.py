"""What runs share: their folder, state, configuration and log."""
