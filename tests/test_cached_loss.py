"""InfoNCELoss with gradient caching and the negatives of all ranks, against sentence-transformers' losses."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from encoder import model_kinds
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch.testing._internal.distributed.multi_threaded_pg import (
    ProcessLocalGroup,
    _install_threaded_pg,
    _uninstall_threaded_pg,
)

from hybridfast.infonce import distributed
from hybridfast.sentence_transformers import InfoNCELoss, _taken
