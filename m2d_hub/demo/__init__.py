"""The web page of ``m2d-hub demo``."""
