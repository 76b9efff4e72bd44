"""Clients: the models as other programs take them, one file a program."""
