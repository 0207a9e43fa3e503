"""Speed beside plain references, costs as work grows, what each mechanism does, ours beside the authors."""

import tasks  # noqa: F401 - before torch: how OpenMP waits, as in every stage
