"""The ``m2d-train`` command."""
