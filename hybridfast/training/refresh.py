"""A run's batches, with hard negatives that are mined anew as the model learns."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from hybridfast.data.sampler import Batch, HybridSampler
from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.mining.mine import mine
from hybridfast.mining.rewriting import with_negatives
from hybridfast.training.config import TrainConfig
from hybridfast.training.ranks import Ranks

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Batches"]


class Batches:
    """What :class:`HybridSampler` is to the loop, with other hard negatives every ``mine_steps`` batches.

    Which rows a batch holds does not depend on them. What was mined is part of the state, so that a run that
    goes on has it without the model it was mined with. It is mined when the batch after it is asked for: a
    checkpoint of that step is from before, and leads to the same.

    Args:
        make: gives the sampler of a corpus.
        model: as it is when it is time to mine.
        folder: of the run; in ``.mining`` lies what the batches are read from. None: in a temporary one.
        ranks: the first mines, and writes what all of them read: they see the same `folder`.
    """

    def __init__(
        self,
        make: Callable[[TokenizedCorpus], HybridSampler],
        model: SentenceTransformer,
        tokens: TokenizedCorpus,
        config: TrainConfig,
        folder: Path | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.make, self.model, self.tokens, self.config = make, model, tokens, config
        self.folder = None if folder is None else folder / ".mining"
        self.ranks = ranks or Ranks()
        self.current = tokens  # with the hard negatives that batches have now
        self.sampler = make(tokens)
        self.negative_VK: NDArray[np.integer] | None = None  # on rank 0, as it was mined last
        self.after_mining: Callable[[], None] = lambda: None

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sampler.close()
        if kind is None:
            self.ranks.wait()  # until none reads any more
        if self.ranks.is_first and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def fingerprint(self) -> str:
        return self.sampler.fingerprint

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch, or of it until it is time to mine: the next call goes on there."""
        if self._is_due():
            self._mine()
        with closing(self.sampler.__iter__()) as batches:  # type: ignore[type-var]
            for batch in batches:
                yield batch
                if self._is_due():
                    return

    def state_dict(self) -> dict[str, Any]:
        state = self.sampler.state_dict()
        if self.negative_VK is not None:
            state["negative_VK"] = torch.from_numpy(self.negative_VK)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        position = {name: value for name, value in state.items() if name != "negative_VK"}
        if "negative_VK" in state:
            self.negative_VK = state["negative_VK"].numpy()
            self._take(self.ranks.by_first(self._rewritten))
        self.sampler.load_state_dict(position)

    def _step(self) -> int:
        """How many batches have been given."""
        position = self.sampler.state_dict()
        return int(position["epoch"] * len(self.sampler) + position["index"])

    def _is_due(self) -> bool:
        if self.config.mine_steps is None:
            return False
        step = self._step()
        has_none = len(self.tokens.text_indptr) - 1 == 2 * len(self.tokens)
        return step % self.config.mine_steps == 0 if step else has_none

    def _mine(self) -> None:
        if path := self.ranks.by_first(self._mined):
            position = self.sampler.state_dict()
            self._take(path)
            self.sampler.load_state_dict(position | {"fingerprint": self.sampler.fingerprint})
        self.after_mining()

    def _mined(self) -> str | None:
        """The folder of the corpus with what is mined now; None where nothing is."""
        step, place = self._step(), self._place()
        for old in place.iterdir():
            # But for what ranks read, and for mining that was cut off, which goes on.
            if old.name != self.current.path.name and not old.name.startswith("mining-"):
                shutil.rmtree(old, ignore_errors=True)
        try:
            mined = mine(
                self.model,
                self.tokens,
                self.config.mining,
                folder=place,
                tokens_per_chunk=self.config.tokens_per_chunk,
            )
        except ValueError as error:
            if not step:
                raise
            warnings.warn(f"mining after step {step:,}: {error}; negatives stay as they were", stacklevel=2)
            return None
        there_VK = mined.negative_VK >= 0
        tqdm.write(
            f"Mined after step {step:,}: {there_VK.sum():,} hard negatives, "
            f"for {there_VK.any(axis=1).mean():.1%} of the rows; "
            f"mean score {mined.score_VK[there_VK].mean():.3f}, of positives {mined.positive_V.mean():.3f}"
        )
        fits = len(self.tokens) <= np.iinfo(np.int32).max
        self.negative_VK = mined.negative_VK.astype(np.int32 if fits else np.int64)
        if mined.folder is not None:
            shutil.rmtree(mined.folder, ignore_errors=True)
        return self._rewritten()

    def _rewritten(self) -> str:
        assert self.negative_VK is not None
        return str(with_negatives(self.tokens, self.negative_VK.astype(np.int64), self._place()).path)

    def _take(self, path: str) -> None:
        self.sampler.close()
        self.current = TokenizedCorpus.open(Path(path))
        self.sampler = self.make(self.current)

    def _place(self) -> Path:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="hybridfast-mining-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder
