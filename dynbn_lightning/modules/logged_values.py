"""How values are logged that all processes have computed together."""

from __future__ import annotations

from typing import Any

SAME_ON_ALL: dict[str, Any] = {"sync_dist": True, "reduce_fx": "max"}
"""For `LightningModule.log`: Lightning would take the mean over the processes, which rounds; the largest of the same
values is the value itself."""
