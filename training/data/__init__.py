"""What trainings read: lists, shards, crops, and the order of clips."""
