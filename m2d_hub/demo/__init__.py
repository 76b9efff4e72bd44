"""The page of ``m2d-hub demo``: what a model makes of a sound, in a browser."""
