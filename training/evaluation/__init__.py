"""Labelled lists, metrics and reports of evaluations."""
