"""The JSON Schema (draft 2020-12) of a recipe, with the settings of every installed plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tutelage.recipe import Recipe

if TYPE_CHECKING:
    from tutelage.plugin import Plugin
    from tutelage.plugins import Host

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema(host: Host) -> dict[str, Any]:
    """The schema by which an editor completes and checks recipes, short forms (`adapter: lora`) included."""
    schema: dict[str, Any] = msgspec.json.schema(Recipe)
    definitions = schema["$defs"]
    stage = definitions["Stage"]["properties"]
    for kind in ("phase", "adapter"):
        stage[kind] = {**_described(stage[kind]), **_choice(host, kind, definitions)}
    stage["adapter"]["default"] = "lora"
    stage["data"] = {
        **_described(stage["data"]),
        "oneOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/Data"}, {"type": "null"}],
    }
    definitions["Data"]["anyOf"] = [{"required": ["train"]}, {"required": ["mix"]}]
    for name in ("Data", "Source"):
        definitions[name]["properties"]["format"]["enum"] = ["", *sorted(host.classes("format"))]
    trackers = definitions["Recipe"]["properties"]["trackers"]
    trackers["items"] = _choice(host, "tracker", definitions)
    trackers["default"] = ["csv"]
    return {"$schema": DRAFT, "title": "A Tutelage recipe", **schema}


def _choice(host: Host, kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """`NAME`, where no setting is required, or `{kind: NAME, …}`; adds the plugins' settings to `definitions`."""
    short, long = [], []
    for name, plugin in sorted(host.classes(kind).items()):
        settings = _settings(kind, name, plugin, definitions)
        definitions[f"{kind}.{name}"] = settings
        long.append({"$ref": f"#/$defs/{kind}.{name}"})
        if settings["required"] == ["kind"]:
            short.append(name)
    return {"oneOf": [{"enum": short}, *long] if short else long or [False]}


def _settings(kind: str, name: str, plugin: type[Plugin], definitions: dict[str, Any]) -> dict[str, Any]:
    place = f"{kind}.{name}"
    try:
        (root,), found = msgspec.json.schema_components([plugin.Config], ref_template=f"#/$defs/{place}.{{name}}")
        own = found.pop(root["$ref"].removeprefix(f"#/$defs/{place}."))
    except (TypeError, ValueError):  # a type that JSON Schema has no word for: its own plugin checks it
        own, found = {"properties": {}, "additionalProperties": True}, {}
    definitions.update({f"{place}.{part}": schema for part, schema in found.items()})
    return {
        "title": name,
        "description": plugin.summary(),
        "type": "object",
        "properties": {"kind": {"const": name, "description": plugin.summary()}, **own["properties"]},
        "required": ["kind", *own.get("required", [])],
        "additionalProperties": own.get("additionalProperties", False),
    }


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("description", "default") if key in schema}
