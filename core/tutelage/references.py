"""Everything that a recipe names outside itself: models, data and files, and the plugins that it asks for. No torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from tutelage.config import item_label, join
from tutelage.marks import Kind
from tutelage.plugins import Host
from tutelage.recipe import Recipe, spelled_out

Step = str | int


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A model, data or a file that a recipe names."""

    place: str
    "As problems call it: `stages.tune.data.train`."
    value: str
    kind: Kind
    path: tuple[Step, ...]
    "Keys and indices that lead to it in the recipe with its short forms spelled out."


class PluginUse(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that a recipe asks for by its name."""

    place: str
    kind: str
    name: str


class Named(msgspec.Struct, kw_only=True):
    """What a recipe names."""

    references: list[Reference] = []
    plugins: list[PluginUse] = []


def named_in(recipe: Mapping[str, Any], host: Host) -> Named:
    """What a recipe, as plain data, names: in its own fields, and in those of its plugins that are marked
    (`tutelage.marks`). A recipe that is not valid is followed as far as it is; empty settings name nothing."""
    found = Named()
    _struct(found, spelled_out(dict(recipe)), Recipe, "", (), host)
    return found


def renamed(recipe: Mapping[str, Any], values: Mapping[tuple[Step, ...], str]) -> dict[str, Any]:
    """The recipe with its short forms spelled out and other values at some references, by their paths."""
    data = copy.deepcopy(spelled_out(dict(recipe)))
    for (*parents, last), value in values.items():
        target: Any = data
        for step in parents:
            target = target[step]
        target[last] = value
    return data


def _struct(
    found: Named, data: Mapping[str, Any], kind: type[Any], place: str, path: tuple[Step, ...], host: Host
) -> None:
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.encode_name in data:
            here = join(place, field.encode_name)
            _field(found, data[field.encode_name], hints[field.name], here, (*path, field.encode_name), host)


def _field(found: Named, value: Any, kind: Any, place: str, path: tuple[Step, ...], host: Host) -> None:
    marks = _marks(kind)
    if "reference" in marks:
        for at, text, where in _texts(value, place, path):
            found.references.append(Reference(place=at, value=text, kind=marks["reference"], path=where))
    elif "plugin" in marks:
        _plugins(found, value, marks["plugin"], place, path, host)
    elif isinstance(value, Mapping) and (struct := _struct_in(kind)) is not None:
        _struct(found, value, struct, place, path, host)
    elif isinstance(value, list) and (struct := _struct_in(kind)) is not None:
        for index, item in enumerate(value):
            if isinstance(item, Mapping):
                _struct(found, item, struct, join(place, item_label(item, index)), (*path, index), host)


def _plugins(found: Named, value: Any, kind: str, place: str, path: tuple[Step, ...], host: Host) -> None:
    if isinstance(value, str) and value:
        found.plugins.append(PluginUse(place=place, kind=kind, name=value))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _plugins(found, item, kind, join(place, str(index)), (*path, index), host)
    elif isinstance(value, Mapping):
        name = value.get("kind")
        if isinstance(name, str):
            found.plugins.append(PluginUse(place=join(place, "kind"), kind=kind, name=name))
            if name in host.classes(kind):
                _struct(found, value, host.classes(kind)[name].Config, place, path, host)
        if isinstance(value.get("rewards"), list) and kind == "reward":  # several that are taken together
            _plugins(found, value["rewards"], kind, join(place, "rewards"), (*path, "rewards"), host)


def _texts(value: Any, place: str, path: tuple[Step, ...]) -> Iterator[tuple[str, str, tuple[Step, ...]]]:
    if isinstance(value, str) and value:
        yield place, value, path
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, join(place, str(index)), (*path, index))


def _marks(kind: Any) -> dict[str, Any]:
    """The marks of a type or of one inside it: `Annotated[str, MODEL] | None` and `list[Annotated[str, MODEL]]` too."""
    marks: dict[str, Any] = {}
    if get_origin(kind) is Annotated:
        for meta in kind.__metadata__:
            if isinstance(meta, msgspec.Meta) and meta.extra:
                marks |= meta.extra
        kind = get_args(kind)[0]
    if get_origin(kind) in (list, tuple, Union, UnionType):
        for part in get_args(kind):
            marks |= _marks(part)
    return marks


def _struct_in(kind: Any) -> Any:
    """The struct that a type is, may be, or is a list of; None when there is none."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (list, Union, UnionType):
        return next((struct for part in get_args(kind) if (struct := _struct_in(part)) is not None), None)
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None
