"""What other programs take the models by: one file a program."""
