"""The JSON Schema agrees with the validation, and covers what plugins bring."""

from __future__ import annotations

import copy
import types
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

import tutelage
from tutelage.errors import TutelageError
from tutelage.plugins import Host, host
from tutelage.recipe import resolve
from tutelage.schema import recipe_schema

jsonschema = pytest.importorskip("jsonschema", reason="checking the schema needs jsonschema: pip install jsonschema")

RECIPE: dict[str, Any] = {
    "name": "invoices",
    "model": "starter:smollm2-135m-instruct",
    "stages": [{"name": "tune", "phase": "sft", "adapter": "lora", "data": "invoices.jsonl"}],
}


def stage_with(**fields: Any) -> dict[str, Any]:
    data = copy.deepcopy(RECIPE)
    data["stages"][0].update(fields)
    return data


GOOD = {
    "short": RECIPE,
    "no adapter": {**RECIPE, "stages": [{"name": "tune", "phase": "sft", "data": "a.jsonl"}]},
    "long": stage_with(phase={"kind": "sft"}, adapter={"kind": "lora", "rank": 8, "targets": ["q_proj"]}),
    "mix": stage_with(data={"mix": [{"source": "a.jsonl", "weight": 2}, {"source": "b.jsonl"}], "format": "alpaca"}),
    "trainer": stage_with(trainer={"max_steps": 5, "learning_rate": 2e-4, "betas": [0.9, 0.95], "devices": 2}),
    "trackers": {**RECIPE, "trackers": ["csv", {"kind": "wandb", "project": "x"}]},
    "full": stage_with(adapter="full"),
}
BAD = {
    "unknown field": {**RECIPE, "modle": "x"},
    "no stages": {**RECIPE, "stages": []},
    "no model": {"name": "x", "stages": RECIPE["stages"]},
    "unknown phase": stage_with(phase="sfft"),
    "unknown adapter": stage_with(adapter={"kind": "lorra"}),
    "adapter without kind": stage_with(adapter={"rank": 8}),
    "unknown setting": stage_with(adapter={"kind": "lora", "rnk": 8}),
    "out of bounds": stage_with(adapter={"kind": "lora", "rank": 0}),
    "wrong type": stage_with(trainer={"seed": "one"}),
    "data that names none": stage_with(data={"format": "alpaca"}),
    "unknown format": stage_with(data={"train": "a", "format": "alpacka"}),
    "unknown tracker": {**RECIPE, "trackers": ["csb"]},
    "setting of another tracker": {**RECIPE, "trackers": [{"kind": "csv", "project": "x"}]},
}


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = recipe_schema(host())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", GOOD)
def test_good_recipes_are_valid_for_the_schema_and_for_us(validator: Any, name: str) -> None:
    validator.validate(GOOD[name])
    resolved = resolve(GOOD[name], Path.cwd(), host())
    validator.validate(msgspec.json.decode(msgspec.json.encode(resolved.recipe)))


@pytest.mark.parametrize("name", BAD)
def test_bad_recipes_are_bad_for_the_schema(validator: Any, name: str) -> None:
    assert not validator.is_valid(BAD[name])
    if name != "unknown format":  # told when the data is read, where a plugin may bring it
        with pytest.raises(TutelageError):
            resolve(BAD[name], Path.cwd(), host())


def test_every_field_of_every_plugin_is_there_with_its_description() -> None:
    definitions = recipe_schema(host())["$defs"]
    for kind in ("phase", "adapter", "tracker"):
        for name, plugin in host().classes(kind).items():
            settings = definitions[f"{kind}.{name}"]
            assert settings["description"] == plugin.summary()
            assert list(settings["properties"]) == [
                "kind",
                *(field.encode_name for field in msgspec.structs.fields(plugin.Config)),
            ]
            assert all("description" in field for field in settings["properties"].values())


def test_every_core_field_says_what_it_is() -> None:
    definitions = recipe_schema(host())["$defs"]
    for struct in ("Stage", "Data", "Source", "Trainer", "Tokens"):
        fields = definitions[struct]["properties"]
        assert [name for name, field in fields.items() if not {"description", "$ref"} & field.keys()] == []


class Inner(tutelage.Config):
    """A part."""

    size: Annotated[int, Meta(ge=1, description="How large.")]


class Needy(tutelage.Adapter):
    """Asks for something."""

    name = "needy"

    class Config(tutelage.Config):
        """A setting without a default, and a part."""

        path: Annotated[str, Meta(description="What to read.")]
        inner: Inner | None = None

    def attach(self, model: Any, tokenizer: Any, new_tokens: Any = ()) -> Any:
        return model

    def save(self, model: Any, folder: Path, weights: Any = None) -> None:
        return None

    def load(self, base: Any, folder: Path) -> Any:
        return base


def test_a_strangers_adapter_joins_with_its_own_settings() -> None:
    module: Any = types.ModuleType("stranger")
    module.register_adapters = tutelage.hookimpl(lambda register: register(Needy))
    found = Host()
    assert found.register(module, "stranger").error == ""
    schema = recipe_schema(found)
    jsonschema.Draft202012Validator.check_schema(schema)
    adapter = jsonschema.Draft202012Validator(
        {**schema["$defs"]["Stage"]["properties"]["adapter"], "$defs": schema["$defs"]}
    )
    assert adapter.is_valid({"kind": "needy", "path": "x", "inner": {"size": 2}})
    assert not adapter.is_valid("needy")  # path has no default
    assert not adapter.is_valid({"kind": "needy", "path": "x", "inner": {"size": 0}})
    assert not adapter.is_valid({"kind": "needy", "path": "x", "inner": {"size": 1, "more": 1}})
