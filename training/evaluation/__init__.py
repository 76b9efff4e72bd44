"""Labelled clips, and how well a model tells them apart."""
