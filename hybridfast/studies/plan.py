"""A study as a file asks for it: models, strategies, grids, seeds and tests, all checked before work."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from hybridfast.training.config import TrainConfig

__all__ = ["UNTRAINED", "Entry", "Point", "Study", "read"]

ConfigOf = Callable[[list[str]], TrainConfig]
# What the study sets by itself.
OWN = {
    *("model", "output_dir", "seed", "num_seeds", "compare", "baseline", "dry_run", "resume_from_checkpoint"),
    *("eval_dataset", "eval_before", "push_to_hub", "hub_model_id", "hub_private_repo"),
}
KEYS = (
    *("output_dir", "models", "tests", "settings", "model_settings", "strategies", "grid", "select", "seeds"),
    *("baselines", "unseen_languages", "resamples"),
)
SELECT = ("mAP mono", "mAP cross", "mAP multi")
UNTRAINED = "untrained"  # what every strategy begins from
SHORT = {"learning_rate": "lr"}  # in names of folders


@dataclass(frozen=True)
class Point:
    """One of the grid's: settings as they were written, and the run with the first seed."""

    settings: Mapping[str, str]
    config: TrainConfig | None  # None: an average, which is not trained

    @property
    def name(self) -> str:
        """Such as lr=0.01,temperature=0.05; "" for an average."""
        return ",".join(f"{SHORT.get(name, name)}={_plain(text)}" for name, text in self.settings.items())


@dataclass(frozen=True)
class Entry:
    """One strategy with one model."""

    model: str
    strategy: str
    folder: Path
    points: tuple[Point, ...]  # of the grid
    seeds: tuple[int, ...]
    own: Mapping[str, str]  # the strategy's settings as they were written
    average: Mapping[str, float] = field(default_factory=dict)  # shares of others' weights in its own

    @property
    def title(self) -> str:
        return f"{self.model} {self.strategy}"

    @property
    def alpha(self) -> float | None:
        """Where alpha is all that makes it; None where it is not."""
        return float(self.own["alpha"]) if self.own.keys() == {"alpha"} else None

    def run_folder(self, point: Point, seed: int) -> Path:
        return self.folder / ",".join(filter(None, [point.name, f"seed={seed}"]))

    def config(self, point: Point, seed: int) -> TrainConfig:
        assert point.config is not None
        return replace(point.config, seed=seed)


@dataclass(frozen=True)
class Study:
    """All that is to be done; ``entries`` in the order in which it is."""

    output_dir: Path
    models: Mapping[str, str]
    tests: Mapping[str, tuple[str, str | None]]  # by title: the name or path, and its data_dir
    entries: tuple[Entry, ...]
    select: tuple[str, ...]
    baselines: tuple[str, ...]
    unseen_languages: tuple[str, ...]
    resamples: int

    def of(self, model: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.model == model]

    def entry(self, model: str, strategy: str) -> Entry:
        return next(entry for entry in self.of(model) if entry.strategy == strategy)


def read(path: Path, config_of: ConfigOf, output_dir: str | None = None) -> Study:
    """A study from its file.

    Args:
        config_of: settings of a run from flags, as the trainer takes them; it raises ValueError.
        output_dir: instead of the file's.

    Raises:
        ValueError: names file, line and what is wrong.
        OSError: the file cannot be read.
    """
    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    return _Reader(path, config_of).study(root, output_dir)


@dataclass(frozen=True)
class _Written:
    """A setting's words, and the line they stand in."""

    words: list[str]
    line: int
    is_list: bool


Settings = dict[str, "_Written | None"]  # None: null, which takes back what stands above


class _Reader:
    """Nodes of one file to a study."""

    def __init__(self, path: Path, config_of: ConfigOf) -> None:
        self.path, self.config_of = path, config_of

    def wrong(self, node: yaml.Node | int, what: str) -> ValueError:
        line = node if isinstance(node, int) else node.start_mark.line + 1
        return ValueError(f"{self.path}:{line}: {what}")

    def study(self, root: yaml.Node | None, output_dir: str | None) -> Study:
        if root is None:
            raise ValueError(f"{self.path}: holds no study")
        parts = self.mapping(root, "a study")
        for name, (node, _) in parts.items():
            if name not in KEYS:
                raise self.wrong(node, f"unknown setting {name!r}; there are {', '.join(KEYS)}")
        for name in ("models", "tests", "strategies"):
            if name not in parts or not self.mapping(parts[name][1], name):
                raise ValueError(f"{self.path}: {name} must name one at least")
        place = output_dir or (
            self.text(parts["output_dir"][1], "output_dir") if "output_dir" in parts else None
        )
        if not place:
            raise ValueError(f"{self.path}: output_dir is missing: the folder of the study")

        def value(name: str) -> yaml.Node | None:
            return parts[name][1] if name in parts else None

        models = {
            self.name(key): self.text(node, name)
            for name, (key, node) in self.mapping(value("models"), "models").items()
        }
        strategies = self.mapping(value("strategies"), "strategies")
        if UNTRAINED in strategies:
            raise self.wrong(
                strategies[UNTRAINED][0], f"{UNTRAINED} is always in the table; name it otherwise"
            )
        settings = self.settings(value("settings"), "settings")
        grid = self.grid(value("grid"), "grid")
        seeds = self.seeds(value("seeds"))
        special = self.mapping(value("model_settings"), "model_settings")
        for name, (node, _) in special.items():
            if name not in models:
                raise self.wrong(node, f"model_settings of {name!r}, which is not among the models")
        entries: list[Entry] = []
        for model, source in models.items():
            mine, my_grid, my_seeds, names = dict(settings), dict(grid), seeds, [*strategies]
            if model in special:
                inner = self.mapping(special[model][1], f"model_settings of {model}")
                if "seeds" in inner:
                    my_seeds = self.seeds(inner["seeds"][1])
                if "strategies" in inner:
                    names = self.names(inner["strategies"][1], "strategies", strategies)
                if "grid" in inner:
                    my_grid |= self.grid(inner["grid"][1], "grid")
                others = {k: v for k, v in inner.items() if k not in ("seeds", "strategies", "grid")}
                mine |= self.settings_of(others)
            for name in names:
                entries.append(
                    self.entry(model, source, *strategies[name], mine, my_grid, my_seeds, Path(place))
                )
        self.averages(entries, strategies)
        study = Study(
            output_dir=Path(place),
            models=models,
            tests=self.tests(value("tests")),
            entries=tuple(entries),
            select=tuple(self.words(value("select"))) or SELECT,
            baselines=tuple(self.names(value("baselines"), "baselines", strategies)),
            unseen_languages=tuple(self.words(value("unseen_languages"))),
            resamples=self.number(value("resamples"), "resamples", 10_000),
        )
        self.no_test_chooses(study)
        return study

    def entry(
        self,
        model: str,
        source: str,
        key: yaml.Node,
        node: yaml.Node,
        settings: Settings,
        grid: dict[str, _Written],
        seeds: tuple[int, ...],
        place: Path,
    ) -> Entry:
        """A strategy with a model; every run of its grid is checked by making its settings."""
        name, inner = self.name(key), self.mapping(node, "a strategy")
        folder = place / model / name
        if "average" in inner:
            if len(inner) > 1:
                raise self.wrong(key, f"{name}: an average is not trained and has no settings of its own")
            shares = self.shares(inner["average"][1], name)
            return Entry(model, name, folder, (Point({}, None),), seeds, {}, shares)
        own = self.settings_of(inner)
        merged = settings | own
        axes = {}
        for axis, values in grid.items():
            mine = merged.pop(axis, None)
            axes[axis] = mine if mine is not None else values
        line = key.start_mark.line + 1
        points = []
        for chosen in product(*(written.words for written in axes.values())):
            point = dict(zip(axes, chosen, strict=True))
            flags = {k: _flags(k, w) for k, w in merged.items() if w is not None}
            flags |= {k: [f"--{k}={text}"] for k, text in point.items()}
            lines = {k: w.line for k, w in [*merged.items(), *axes.items()] if w is not None}
            points.append(Point(point, self.config(f"{model} {name}", source, flags, lines, line, seeds[0])))
        shown = {k: " ".join(w.words) for k, w in own.items() if w is not None}
        return Entry(model, name, folder, tuple(points), seeds, shown)

    def config(
        self,
        title: str,
        source: str,
        flags: dict[str, list[str]],
        lines: dict[str, int],
        line: int,
        seed: int,
    ) -> TrainConfig:
        for name in flags:
            if name in OWN:
                raise self.wrong(lines[name], f"{title}: {name} is set by the study")
        words = [word for of in flags.values() for word in of]
        words += [f"--model={source}", f"--seed={seed}", "--eval_dataset=none", "--eval_before=False"]
        if "eval_steps" not in flags:  # the last step's figures are all that counts
            steps = flags.get("max_steps", [f"={TrainConfig.max_steps}"])[-1]
            words.append(f"--eval_steps={steps.split('=')[-1]}")
        try:
            config = self.config_of(words)
            if config.save_steps is None:
                config = replace(config, save_steps=max(1, config.max_steps // 10))
        except ValueError as error:
            about = next((lines[name] for name in lines if re.search(rf"\b{name}\b", str(error))), line)
            raise self.wrong(about, f"{title}: {error}") from None
        return config

    def averages(self, entries: list[Entry], strategies: Mapping[str, Any]) -> None:
        trained = {(entry.model, entry.strategy): entry for entry in entries if not entry.average}
        for entry in entries:
            names = [name for name in entry.average if name != UNTRAINED]
            for name in names:
                if (entry.model, name) not in trained:
                    raise self.wrong(
                        strategies[entry.strategy][0],
                        f"{entry.title}: average of {name!r}, which is no trained strategy of {entry.model}",
                    )
            if entry.average and not names:
                raise self.wrong(strategies[entry.strategy][0], f"{entry.title}: average of no strategy")

    def no_test_chooses(self, study: Study) -> None:
        """What is tested on must not be what is validated on."""
        for entry in study.entries:
            for point in entry.points:
                dev = point.config.validation_dataset if point.config else None
                for title, (name, _) in study.tests.items():
                    if dev is not None and (dev == name or _same_file(dev, name)):
                        raise ValueError(
                            f"{self.path}: {entry.title}: validation_dataset {dev} is the test {title}: what "
                            "chooses must not be what is tested"
                        )

    # --- parts ------------------------------------------------------------------------------------------

    def mapping(self, node: yaml.Node | None, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys and values by the key's text."""
        if node is None or node.tag == _NULL:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"{what} must be 'name: value' lines, got a {node.id}")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = self.text(key, "a name")
            if name in found:
                raise self.wrong(key, f"{name!r} appears twice")
            found[name] = (key, value)
        return found

    def text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            raise self.wrong(node, f"{what} holds a {node.id} where a value is meant")
        if node.tag == _FLOAT:  # YAML's .inf to Python's inf
            return re.sub(r"^([-+]?)\.([a-z])", r"\1\2", str(node.value), flags=re.IGNORECASE)
        return str(node.value)

    def name(self, node: yaml.Node) -> str:
        """One that can be a folder's."""
        name = self.text(node, "a name")
        if not re.fullmatch(r"[^\W_][\w.+@=-]*", name):
            raise self.wrong(node, f"a name must be of letters, digits and . + - _ @ =, got {name!r}")
        return name

    def words(self, node: yaml.Node | None) -> list[str]:
        if node is None or node.tag == _NULL:
            return []
        if isinstance(node, yaml.SequenceNode):
            return [self.text(entry, "a list") for entry in node.value]
        return [self.text(node, "a list")]

    def names(self, node: yaml.Node | None, what: str, known: Mapping[str, Any]) -> list[str]:
        for name in (names := self.words(node)):
            if node is not None and name not in known:
                raise self.wrong(node, f"{what} must be of {', '.join(known)}, got {name!r}")
        return names

    def settings(self, node: yaml.Node | None, what: str) -> Settings:
        return self.settings_of(self.mapping(node, what))

    def settings_of(self, parts: Mapping[str, tuple[yaml.Node, yaml.Node]]) -> Settings:
        return {
            name: None
            if node.tag == _NULL
            else _Written(self.words(node), key.start_mark.line + 1, isinstance(node, yaml.SequenceNode))
            for name, (key, node) in parts.items()
        }

    def grid(self, node: yaml.Node | None, what: str) -> dict[str, _Written]:
        grid = {}
        for name, written in self.settings(node, what).items():
            if written is None or not written.words:
                assert node is not None
                raise self.wrong(node, f"{what}: {name} must list one value at least")
            grid[name] = written
        return grid

    def shares(self, node: yaml.Node, name: str) -> dict[str, float]:
        """Whose weights count how much: a list, of which all count alike, or 'strategy: share' lines."""
        if not isinstance(node, yaml.MappingNode):
            return dict.fromkeys(self.words(node), 1.0)
        shares = {}
        for of, (_, value) in self.mapping(node, "average").items():
            text = self.text(value, of)
            try:
                shares[of] = float(text)
            except ValueError:
                shares[of] = math.nan
            if not 0 < shares[of] < math.inf:
                raise self.wrong(value, f"{name}: the share of {of} must be a number above 0, got {text!r}")
        return shares

    def number(self, node: yaml.Node | None, what: str, default: int) -> int:
        if node is None:
            return default
        text = self.text(node, what)
        if not text.isdecimal() or int(text) < 1:
            raise self.wrong(node, f"{what} must be a whole number >= 1, got {text!r}")
        return int(text)

    def seeds(self, node: yaml.Node | None) -> tuple[int, ...]:
        """How many, from 0 on, or which."""
        if not isinstance(node, yaml.SequenceNode):
            return tuple(range(self.number(node, "seeds", 1)))
        seeds = [self.text(entry, "seeds") for entry in node.value]
        if not seeds or len(set(seeds)) < len(seeds) or not all(seed.isdecimal() for seed in seeds):
            raise self.wrong(node, f"seeds must be different whole numbers, got {' '.join(seeds) or 'none'}")
        return tuple(map(int, seeds))

    def tests(self, node: yaml.Node | None) -> dict[str, tuple[str, str | None]]:
        found: dict[str, tuple[str, str | None]] = {}
        for name, (key, value) in self.mapping(node, "tests").items():
            title = Path(name).stem
            if title in found:
                raise self.wrong(key, f"two tests would be called {title!r}")
            found[title] = (name, None if value.tag == _NULL else self.text(value, name))
        return found


_NULL, _FLOAT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:float"


def _flags(name: str, written: _Written) -> list[str]:
    if written.is_list:
        return [f"--{name}", *written.words]
    return [f"--{name}={written.words[0]}"]  # one word, for a text may begin with a dash


def _plain(text: str) -> str:
    """A value as a folder's name has it."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return re.sub(r"[^\w.+-]+", "_", text)


def _same_file(one: str, other: str) -> bool:
    return Path(one).exists() and Path(other).exists() and Path(one).samefile(other)
