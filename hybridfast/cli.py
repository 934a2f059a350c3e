"""What the commands share: flags and YAML into a dataclass, one-line errors, an output folder or none."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import tempfile
from argparse import (
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    RawDescriptionHelpFormatter,
    _StoreFalseAction,
)
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml

__all__ = [
    "Output",
    "check_output_folder",
    "fail",
    "from_flags",
    "lasting_folder",
    "next_free",
    "output_folder",
    "parse",
    "usage_errors",
]

Config = TypeVar("Config")


def parse(config: type[Config], prog: str, description: str, argv: list[str] | None = None) -> Config:
    """Fill a dataclass from ``[FILE.yaml] [--flags]``; a flag overrides the file.

    Any mistake ends the process with one line on stderr and exit code 2.
    """
    parser = _parser(config, prog, description)
    argv = sys.argv[1:] if argv is None else argv
    with usage_errors():
        if argv and argv[0].endswith((".yaml", ".yml")):
            argv = [*_yaml_flags(Path(argv[0]), parser), *argv[1:]]
        return config(**vars(parser.parse_args(argv)))


def from_flags(config: type[Config], flags: list[str]) -> Config:
    """A dataclass from flags alone; ValueError for any mistake."""
    return config(**vars(_parser(config, "", "").parse_args(flags)))


def _parser(config: type[object], prog: str, description: str) -> ArgumentParser:
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    class Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
        def _get_help_string(self, action: Action) -> str | None:
            if action.default is None or isinstance(action, _StoreFalseAction):
                return action.help  # which says what happens without the flag
            return super()._get_help_string(action)

    parser: ArgumentParser = Parser(
        config,  # type: ignore[arg-type]
        prog=prog,
        usage=f"{prog} [SETTINGS.yaml] [--flag value ...]",
        description=description,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    for action in parser._actions:
        if action.type is string_to_bool:
            action.type = lambda text: string_to_bool({"on": "yes", "off": "no"}.get(text.lower(), text))
        elif isinstance(action, _StoreFalseAction):  # transformers gives it the text of what it negates
            action.help = f"The same as --{action.dest} False."
    _into_sections(parser, getattr(config, "SECTIONS", {}))
    return parser


def _into_sections(parser: ArgumentParser, sections: Mapping[str, str]) -> None:
    """Show flags under headings, which `sections` has by the name of the first setting below each."""
    headings, options = dict(sections), parser._optionals
    group = options
    for action in [*options._group_actions]:
        if heading := headings.pop(action.dest, None):
            group = parser.add_argument_group(heading)
        if group is not options:
            options._group_actions.remove(action)
            group._group_actions.append(action)


def _yaml_flags(path: Path, parser: ArgumentParser) -> list[str]:
    """The file's settings as flags, so that they are checked and converted like flags.

    Nodes, not values: a scalar stays as it was written, for YAML reads no, 1:30 and 2024-01-01 as a truth
    value, a number and a date.
    """
    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: expected 'setting: value' lines, got a {root.id}")
    known = {action.dest for action in parser._actions}
    flags: dict[str, list[str]] = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        name = _scalar(path, "a setting's name", key)
        if name not in known:
            raise ValueError(f"{path}:{line}: unknown setting {name!r}")
        if name in flags:
            raise ValueError(f"{path}:{line}: setting {name!r} appears twice")
        if isinstance(value, yaml.SequenceNode):
            flags[name] = [f"--{name}", *(_scalar(path, name, entry) for entry in value.value)]
        else:  # one word, for a text may begin with a dash
            flags[name] = [] if value.tag == _NULL else [f"--{name}={_scalar(path, name, value)}"]
    return [word for words in flags.values() for word in words]


_NULL, _FLOAT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:float"


def _scalar(path: Path, name: str, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
        kind = "null" if node.tag == _NULL else f"a {node.id}"
        raise ValueError(f"{path}:{node.start_mark.line + 1}: {name} holds {kind} where a value is meant")
    if node.tag == _FLOAT:  # YAML's .inf to Python's inf
        return re.sub(r"^([-+]?)\.([a-z])", r"\1\2", node.value, flags=re.IGNORECASE)
    return node.value


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Report what the user can mend (a bad value, a missing file) in one line and exit with code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        fail(str(error))


def next_free(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that does not exist."""
    return next(path for n in count(1) if not (path := Path("runs", f"{name}-{n}")).exists())


def check_output_folder(folder: str | os.PathLike[str]) -> Path:
    """The path, if a result may be written there.

    Raises:
        FileExistsError: something is there already.
        OSError: no folder can be made there.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"output_dir {path} exists and is not empty; name another one")
    above = next(folder for folder in Path(os.path.abspath(path)).parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise OSError(f"output_dir {path} cannot be made: {above} is no folder to write in")
    return path


@dataclass
class Output:
    """A folder to write into; with ``keep``, what is there by now is kept even where the rest fails."""

    folder: Path
    path: Path  # what the folder will be called
    keep: bool = False


@contextmanager
def output_folder(folder: str | os.PathLike[str]) -> Iterator[Output]:
    """A folder to write into, which takes its name when the block ends well and vanishes when it does not.

    Where something else has taken that name meanwhile, the folder gets NAME-2, -3, ..., says ``path``.
    """
    with usage_errors():
        path = check_output_folder(folder)
    parent, name = os.path.split(os.path.abspath(path))
    with usage_errors():
        os.makedirs(parent, exist_ok=True)
        output = Output(Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent)), path)
    try:
        yield output
    except BaseException as error:
        if not output.keep:
            shutil.rmtree(output.folder, ignore_errors=True)
            raise
        output.path = _named(output.folder, path)
        if not isinstance(error, SystemExit):  # whose message says it
            print(f"{type(error).__name__}: what there was by then is in {output.path}", file=sys.stderr)
        raise
    output.path = _named(output.folder, path)


@contextmanager
def lasting_folder(folder: str | os.PathLike[str]) -> Iterator[Output]:
    """A folder that is there at once and stays, however the block ends: for what can be gone on with.

    A process that finds another one at work in it ends in one line.
    """
    path = Path(folder)
    with usage_errors():
        os.makedirs(path, exist_ok=True)
        lock = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"output_dir {path} is being written by another process")
        except OSError:  # a file system without locks
            pass
        yield Output(path, path, keep=True)
    except (Exception, KeyboardInterrupt) as error:
        print(f"{type(error).__name__}: what there was by then is in {path}", file=sys.stderr)
        raise
    finally:
        os.close(lock)


def _named(folder: Path, path: Path) -> Path:
    """The folder's new name: the path, or what is free of PATH-2, PATH-3, ..."""
    folder.chmod(0o755)
    for n in count(1):
        free = path if n == 1 else Path(f"{os.path.abspath(path)}-{n}")
        try:
            os.replace(folder, os.path.abspath(free))
        except OSError:  # also where a folder is not empty
            if not os.path.lexists(free):
                raise
        else:
            if n > 1:
                print(f"output_dir {path} has been taken meanwhile; wrote {free}", file=sys.stderr)
            return free
    raise AssertionError
