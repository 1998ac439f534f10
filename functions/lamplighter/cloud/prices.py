"""What resources cost in a region."""

from __future__ import annotations


class Prices:
    """Prices of one region."""
