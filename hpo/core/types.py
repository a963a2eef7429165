"""Types that several packages name."""

from __future__ import annotations

from typing import Literal

Direction = Literal["maximize", "minimize"]
"""Which way a value is better."""
