"""Whose an output folder is: ``run.json``, the settings and the data that its runs are of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.training.config import TrainConfig

__all__ = ["Record", "check_same", "identity", "is_fresh"]

NAME = "run.json"
# Settings that may differ between a run and its continuation: they change no weight but by rounding.
FREE = {
    *("output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit", "save_dtype"),
    *("logging_steps", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "license"),
    *("num_workers", "dry_run", "compare", "num_seeds", "device", "trust_remote_code"),
    *("tokens_per_chunk", "activation_memory", "gradient_checkpointing", "exchange", "shard"),
    "teacher_dir",
    *("eval_dataset", "eval_data_dir", "eval_batch_size", "eval_before"),
    *("data", "data_config", "data_split", "data_streaming", "language"),  # known by what they hold
}


def identity(config: TrainConfig, tokens: TokenizedCorpus | None = None) -> dict[str, Any]:
    """The settings that decide about weights, and the data, where it is read already; for JSON."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE}
    told: dict[str, Any] = {"settings": json.loads(json.dumps(settings))}
    if tokens is not None:
        told["data"] = {
            "name": tokens.name,
            "groups": len(tokens.source_G),
            "versions": len(tokens),
            "corpus": tokens.settings["data"],
            "tokens": tokens.fingerprint,
        }
    return told


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], place: str) -> None:
    """ValueError in a line that names what differs between two identities; what one does not tell, does not.

    Args:
        place: where the first was found.
    """
    defaults = {
        setting.name: None if setting.default is MISSING else setting.default
        for setting in fields(TrainConfig)
    }
    differing = []
    for name, value in here["settings"].items():
        other = there["settings"].get(name, defaults.get(name))
        if other != value:
            differing.append(f"{name} was {other!r}, is {value!r}")
    if "data" in there and "data" in here:
        was, is_ = there["data"], here["data"]
        if was["corpus"] != is_["corpus"]:
            differing.append(f"data was {_data(was)}, is {_data(is_)}")
        elif was["tokens"] != is_["tokens"]:
            differing.append("the token ids of the data: another tokenizer, prompt or length")
    if differing:
        raise ValueError(f"{place} is of a run that differs: {'; '.join(differing)}")


def _data(data: Mapping[str, Any]) -> str:
    return (
        f"{data['name']!r} ({data['groups']:,} groups, {data['versions']:,} versions, {data['corpus'][:8]})"
    )


@dataclass
class Record:
    """What ``run.json`` says of an output folder."""

    identity: dict[str, Any]
    several: dict[str, Any]  # compare and num_seeds
    complete: list[str] = field(default_factory=list)  # runs that have left all they leave

    @classmethod
    def of(cls, config: TrainConfig, tokens: TokenizedCorpus | None = None) -> Record:
        return cls(identity(config, tokens), {"compare": config.compare, "num_seeds": config.num_seeds})

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """None: there is none."""
        try:
            return cls(**json.loads((folder / NAME).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / NAME} is damaged: {error}") from error

    def write(self, folder: Path) -> None:
        unfinished = folder / f".{NAME}"
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, folder / NAME)

    def check(self, other: Record, folder: Path) -> None:
        """ValueError: the folder, which this is of, is of other settings or data than the other."""
        check_same(self.identity, other.identity, f"output_dir {folder}")
        for name, value in other.several.items():
            if self.several[name] != value:
                raise ValueError(
                    f"output_dir {folder} is of a run that differs: {name} was {self.several[name]!r}, "
                    f"is {value!r}"
                )


def is_fresh(folder: Path) -> bool:
    """Whether a folder is missing or empty; it is emptied of a record that was about to be written."""
    if folder.is_dir():
        (folder / f".{NAME}").unlink(missing_ok=True)
        return not any(folder.iterdir())
    return not folder.exists()
