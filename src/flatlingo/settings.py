"""Settings that are read from YAML files: immutable, and what is wrong in them is told by its name."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from flatlingo.errors import FlatlingoError, unknown

S = TypeVar("S", bound=BaseModel)


class Settings(BaseModel):
    """Immutable settings that refuse unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def yaml_file(name: str | Path, what: str, shipped: Path, known: list[str]) -> Path:
    """The file that is meant by a path that ends in `.yaml` or `.yml`, or by the name of one that comes with flatlingo.

    Args:
        name: the path, in which `~` is the home folder, or the name.
        what: what it should be, for the message.
        shipped: folder of those that come with flatlingo.
        known: their names.

    Raises:
        FlatlingoError: for a name that is not known.
    """
    if str(name).endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    if str(name) not in known:
        raise FlatlingoError(unknown(what, str(name), known) + " (or give a path that ends in .yaml)")
    return shipped / f"{name}.yaml"


def read_yaml(path: Path, what: str) -> object:
    """The content of a YAML file.

    Raises:
        FlatlingoError: if it cannot be read, is not YAML or has a key twice; the message begins with what it should be.
    """
    try:
        text = path.read_text(encoding="utf-8")
        for repeated in _repeated_keys(yaml.compose(text, yaml.SafeLoader), set()):
            raise yaml.MarkedYAMLError(problem=f"{repeated.value!r} is given twice", problem_mark=repeated.start_mark)
        return yaml.safe_load(text)
    except OSError as error:
        raise FlatlingoError(f"{what} {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        why = f"line {mark.line + 1}: {error.problem}" if mark else str(error)
        raise FlatlingoError(f"{what} {path.name} is not a YAML file: {why}") from error


def _repeated_keys(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.Node]:
    """The keys that stand in a mapping before; YAML would take the last. Each node once, for an alias repeats one."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, item) for item in node.value]
    keys = set()
    for key, value in pairs:
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys:
                yield key
            keys.add(key.value)
        yield from _repeated_keys(value, seen)


def validated(kind: type[S], values: object, what: str) -> S:
    """The settings, or a `FlatlingoError` that names every field that is wrong and why."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise FlatlingoError(f"{what}: {'; '.join(_wrong(error))}") from error


def _wrong(error: ValidationError) -> Iterable[str]:
    for found in error.errors():
        message = found["msg"].removeprefix("Value error, ")
        if isinstance(found["input"], bool) and found["type"] == "string_type":
            message += " (YAML reads yes, no, on and off as true and false: put it in quotes)"
        yield ": ".join([*filter(None, [".".join(map(str, found["loc"]))]), message])
