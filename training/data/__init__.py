"""Data of trainings: lists, shards, crops, and the order of clips."""
