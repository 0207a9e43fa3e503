"""The services around the pipeline, as plain local processes or in Docker."""
