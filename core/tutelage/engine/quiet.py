"""What libraries tell their developers is kept off a user's screen."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Keep what libraries tell developers off a user's screen; errors still come through."""
    import lightning  # noqa: F401 - it sets its loggers' levels when it is imported

    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*is_gradient_checkpointing.*",
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*IterableDataset.*",
        ".*srun.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)
