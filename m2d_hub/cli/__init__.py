"""The ``m2d-hub`` command."""
