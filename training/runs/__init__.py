"""Shared parts of runs: their folder, state, configuration and log."""
