"""Configs are msgspec structs; this module turns plain data into them and reports every problem at once.

msgspec stops at the first error. People mend a file faster when they see all of them, each with its place,
so structs are walked field by field here and only the leaves are left to msgspec.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from tutelage.errors import Problem, TutelageError

T = TypeVar("T")


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base class of all settings. Fields carry `Annotated[type, msgspec.Meta(description=..., ge=...)]`.

    Checks across fields go into `__post_init__`, which raises ValueError with a sentence.
    """


def convert(data: Any, kind: type[T], place: str = "") -> T:
    """Turn plain data (dicts, lists, scalars) into `kind`.

    Raises:
        TutelageError: with every problem found, each naming its place below `place`.
    """
    problems: list[Problem] = []
    value = convert_into(problems, data, kind, place)
    if problems:
        raise TutelageError(problems)
    result: T = value
    return result


def convert_into(problems: list[Problem], data: Any, kind: Any, place: str) -> Any:
    """Like `convert`, but adds what is wrong to `problems` and returns None where a value could not be made."""
    struct = _struct_of(kind)
    if struct is not None and isinstance(data, Mapping):
        return _convert_struct(problems, data, struct, place)
    bare = _without_annotation(kind)
    if get_origin(bare) is list and isinstance(data, list):
        item_kind = get_args(bare)[0]
        if _struct_of(item_kind) is not None:
            before = len(problems)
            if get_origin(kind) is Annotated:  # the list's own bounds
                _convert_leaf(problems, [None] * len(data), Annotated[list[Any], *kind.__metadata__], place)
            items = [
                convert_into(problems, item, item_kind, join(place, item_label(item, index)))
                for index, item in enumerate(data)
            ]
            return items if len(problems) == before else None
    return _convert_leaf(problems, data, kind, place)


def item_label(item: Any, index: int) -> str:
    """How a place calls an item of a list: by its name where it has one."""
    name = item.get("name") if isinstance(item, Mapping) else getattr(item, "name", None)
    return name if isinstance(name, str) and name else str(index)


def join(place: str, name: str) -> str:
    """`stages` and `tune` make `stages.tune`."""
    return f"{place}.{name}" if place else name


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint that names the nearest known word, or all of them when none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(sorted(known))}" if known else "there are none"


def _convert_struct(problems: list[Problem], data: Mapping[str, Any], kind: Any, place: str) -> Any:
    before = len(problems)
    fields, hints = _fields_of(kind)
    for key in data:
        if key not in fields:
            hint = did_you_mean(str(key), list(fields))
            problems.append(Problem(place=join(place, str(key)), wrong="unknown field", fix=hint))
    values = {}
    for key, field in fields.items():
        if key in data:
            values[field.name] = convert_into(problems, data[key], hints[field.name], join(place, key))
        elif field.required:
            problems.append(Problem(place=join(place, key), wrong="missing", fix="it has no default: add it"))
    if len(problems) > before:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        problems.append(Problem(place=place, wrong=str(error)))
        return None


@functools.cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a struct by the names that data has for them, and their types by their own names."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    return fields, get_type_hints(kind, include_extras=True)


def _convert_leaf(problems: list[Problem], data: Any, kind: Any, place: str) -> Any:
    for number in _floats(data):
        if not math.isfinite(number):
            problems.append(Problem(place=place, wrong=f"{number} is not a finite number"))
            return None
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        problems.append(Problem(place=place, wrong=_sentence(str(error), data)))
        return None


def _floats(data: Any) -> list[float]:
    if isinstance(data, float):
        return [data]
    if isinstance(data, list | tuple):
        return [number for item in data for number in _floats(item)]
    if isinstance(data, Mapping):
        return [number for item in data.values() for number in _floats(item)]
    return []


def _sentence(message: str, data: Any) -> str:
    message = message.replace("`", "").replace("Expected", "expected")
    message = message.replace("expected object", "expected a mapping (key: value)").replace(
        "got object", "got a mapping"
    )
    message = message.replace("array", "list")
    shown = repr(data)
    return f"{message} (it is {shown if len(shown) <= 60 else shown[:57] + '...'})"


def _without_annotation(kind: Any) -> Any:
    """Strip Annotated and `| None`."""
    if get_origin(kind) is Annotated:
        return _without_annotation(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        members = [member for member in get_args(kind) if member is not NoneType]
        if len(members) == 1:
            return _without_annotation(members[0])
    return kind


def _struct_of(kind: Any) -> Any:
    """The one struct that a mapping can become under this type, if there is exactly one."""
    kind = _without_annotation(kind)
    if get_origin(kind) in (Union, UnionType):
        structs = [struct for member in get_args(kind) if (struct := _struct_of(member)) is not None]
        return structs[0] if len(structs) == 1 else None
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def read_file(path: Path) -> Any:
    """Read a YAML, TOML or JSON file into plain data.

    Raises:
        TutelageError: when it is missing, not text, too large, or malformed (with its line).
    """
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "no such file"
        raise TutelageError.at(str(path), kind, "give the path of a YAML, TOML or JSON file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise TutelageError.at(str(path), f"unknown kind of file {path.suffix!r}", "use .yaml, .toml or .json")
    if path.stat().st_size > _LARGEST_FILE:
        raise TutelageError.at(str(path), "is larger than 10 MB", "settings are small; is this a data file?")
    try:
        return reader(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise TutelageError.at(str(path), "is not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise TutelageError.at(str(path), f"can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TutelageError.at(str(path), f"malformed: {error}") from None


_LARGEST_FILE = 10_000_000


def parse_yaml(text: str) -> Any:
    """YAML with numbers and booleans as YAML 1.2 has them (`2e-4` is a number, `no` a word); repeated keys are errors.

    Raises:
        ValueError: with the line where the text is malformed.
    """
    import yaml

    from tutelage._yaml import StrictLoader

    try:
        return yaml.load(text, Loader=StrictLoader)  # noqa: S506 - StrictLoader is a SafeLoader # nosec B506
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{getattr(error, 'problem', None) or 'not valid YAML'}") from None


def _parse_toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


def _parse_json(text: str) -> Any:
    import json

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise ValueError(f"the key {repeated!r} appears twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=no_repeats)


_READERS: dict[str, Callable[[str], Any]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": _parse_toml,
    ".json": _parse_json,
}


def override(data: Any, assignment: str) -> None:
    """Apply `stages.tune.adapter.rank=8` to plain data, in place. List items are found by name or number.

    Raises:
        TutelageError: when the assignment has no `=`, or leads through something that is not there.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise TutelageError.at(f"--set {assignment}", "is not FIELD=VALUE", "write --set stages.tune.adapter.rank=8")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise TutelageError.at(f"--set {assignment}", f"the value is malformed: {error}") from None
    *parents, last = path.split(".")
    target = data
    for name in parents:
        target = _step(target, name, assignment)
    if isinstance(target, list):
        target[_index(target, last, assignment)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise _no_fields(assignment, parents[-1], target)


def _step(target: Any, name: str, assignment: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, name, assignment)]
    if isinstance(target, dict):
        value = target.setdefault(name, {})
        if isinstance(value, str) and name in _SHORTHAND:  # `adapter: lora` is short for `adapter: {kind: lora}`
            value = target[name] = {_SHORTHAND[name]: value}
        return value
    raise _no_fields(assignment, name, target)


def _no_fields(assignment: str, name: str, target: Any) -> TutelageError:
    wrong = f"{name} leads into {target!r}, which has no fields"
    return TutelageError.at(f"--set {assignment}", wrong, "leave out what comes after it, or set a mapping")


_SHORTHAND = {"phase": "kind", "adapter": "kind", "data": "train"}


def _index(items: list[Any], name: str, assignment: str) -> int:
    labels = [item_label(item, index) for index, item in enumerate(items)]
    if name in labels:
        return labels.index(name)
    if name.isdigit() and int(name) < len(items):
        return int(name)
    raise TutelageError.at(f"--set {assignment}", f"nothing is called {name}", did_you_mean(name, labels))
