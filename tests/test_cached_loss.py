"""InfoNCELoss with gradient caching and the negatives of all ranks, against sentence-transformers' losses."""

from __future__ import annotations
