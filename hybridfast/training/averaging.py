"""Which weights a run leaves: those of its last step, or means with earlier ones and with another model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hybridfast.encoder import loading
from hybridfast.encoder.embedding import reading_of
from hybridfast.training.config import TrainConfig
from hybridfast.training.sharding import fill

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Average", "average_of", "check_other"]


def average_of(model: SentenceTransformer, config: TrainConfig) -> Average:
    """What the settings ask for, of a model before its training.

    The mean with the model that training began from is by Wortsman et al. (2022, "Robust fine-tuning of
    zero-shot models"), that of two trained ones by Wortsman et al. (2022, "Model soups").
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = None
    if config.average_with is not None:
        weights = dict(_other(config).named_parameters())
        others = [weights[name].detach() for name in trained]
    return Average(list(trained.values()), config.ema_decay, config.average_weight, others)


def check_other(model: SentenceTransformer, config: TrainConfig) -> None:
    """Whether the model that the settings name can be averaged with this one.

    Raises:
        ValueError: it has other tokens, shapes of weights, or weights where they are not trained here.
        OSError: it cannot be loaded.
    """
    if config.average_with is None:
        return
    place, other_model = f"average_with {config.average_with}", _other(config)
    if _tokens(other_model) != _tokens(model):
        raise ValueError(f"{place}: its tokenizer is another, so that its weights are of other tokens")
    theirs = dict(other_model.named_parameters())
    for name, parameter in model.named_parameters():
        other = theirs.get(name)
        if other is None or other.shape != parameter.shape:
            there = "none there" if other is None else f"of shape {tuple(other.shape)} there"
            raise ValueError(f"{place}: the weights {name}, {tuple(parameter.shape)} here, are {there}")
        if not parameter.requires_grad and not torch.equal(other, parameter.cpu()):
            raise ValueError(f"{place}: the weights {name}, which are not trained here, are others there")


def _other(config: TrainConfig) -> SentenceTransformer:
    assert config.average_with is not None
    try:
        model = loading.load(config.average_with, device="cpu", trust_remote_code=config.trust_remote_code)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"average_with {error}") from None
    return model.float()


def _tokens(model: SentenceTransformer) -> list[str]:
    """What defines the tokens of each of the model's tokenizers."""
    return [settings["definition"] for settings in reading_of(model)["tokenizers"]]


class Average:
    """The weights that are saved: of the last step, their average over the steps, and others' share in it.

    A step's mean takes a pass over all weights, also over rows of a table that the step did not touch.

    Args:
        decay: a step's share in the average falls by it with each later one; 0: the last step's alone. Begins
            as the mean of what there is, so that the first weights do not weigh more than others.
        share: of the others.
        others: weights of the same shapes, whole. Default: the weights as they are now, before training.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        decay: float,
        share: float = 0.0,
        others: Sequence[Tensor] | None = None,
    ) -> None:
        self.parameters, self.decay, self.share, self.steps = parameters, decay, share, 0
        self.means = [parameter.detach().clone() for parameter in parameters] if decay else []
        self.others = [parameter.detach().clone() for parameter in parameters] if share else []
        with torch.no_grad():
            for weight, other in zip(self.others, others or (), strict=False):
                fill(weight, other)

    @torch.no_grad()
    def add(self) -> None:
        """Count the weights of a step."""
        if self.decay:
            self.steps += 1
            share = max(1 / self.steps, 1 - self.decay)
            torch._foreach_lerp_(self.means, [p.detach() for p in self.parameters], share)

    @torch.no_grad()
    def take_over(self) -> None:
        """Put what is saved in the place of the weights."""
        for parameter, mean in zip(self.parameters, self.means, strict=False):  # no means without a decay
            parameter.copy_(mean)
        for parameter, other in zip(self.parameters, self.others, strict=False):
            parameter.lerp_(other, self.share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """What is saved is the weights meanwhile."""
        changed = self.parameters if self.means or self.others else []
        last = [parameter.detach().clone() for parameter in changed]
        self.take_over()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(changed, last, strict=True):
                    parameter.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "means": self.means, "others": self.others}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name in ("means", "others"):
            for tensor, saved in zip(getattr(self, name), state[name], strict=True):
                fill(tensor, saved)
