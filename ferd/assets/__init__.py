"""Weights that come with the package; how each was made is in docs/evidence/."""
