"""Types that several packages name."""

from __future__ import annotations

from typing import Literal

Direction = Literal["maximize", "minimize"]
"""Whether a higher or a lower value is better."""
