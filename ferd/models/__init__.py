"""Networks: classifiers with a ``features()`` / ``head()`` seam, and the image generator."""
