"""Charts of the report, a family a file: pure functions from tidy rows to ``Figure``."""
