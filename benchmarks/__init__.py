"""Speed: the hot steps beside plain references of the same mathematics; costs as work grows; threads."""

import tasks  # noqa: F401 - before torch: how OpenMP waits, as in every stage
