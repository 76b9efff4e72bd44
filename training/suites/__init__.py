"""Suites of evaluations, and summaries of several runs."""
