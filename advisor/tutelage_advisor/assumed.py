"""What is assumed where a situation is silent, and the values over which a field is tried to see whether it matters."""

from __future__ import annotations

from typing import Any

import msgspec

from tutelage_advisor.situation import Situation, Traffic, choices, is_yes_or_no

DEFAULT_MODEL = "llama-3.1-8b"

_PLAIN: dict[str, tuple[Any, str]] = {
    "explainable_in_prompt": (True, "most tasks can be explained, and trying it costs little"),
    "base_capability": ("partial", "the middle; an hour with a prompt and twenty inputs would tell"),
    "iteration_speed": ("days", "the middle"),
    "examples": (0, "none were mentioned"),
    "example_quality": ("clean", "the middle"),
    "task_breadth": ("medium", "the middle"),
    "needs_strict_format": (False, "none was mentioned"),
    "quality_critical": (False, "not said to be"),
    "forgetting_sensitive": (False, "the model is taken to serve this task alone"),
    "data_may_leave": (True, "nothing forbids it"),
    "variants": (1, "one task, one variant"),
    "horizon_months": (12, "a common planning horizon"),
}

_TRAFFIC: dict[str, Any] = {
    "requests_per_month": 1_000,
    "prompt_tokens": 1_000,
    "output_tokens": 300,
    "growth_per_month": 0.0,
    "cached_share": 0.0,
}

TRIED: dict[str, tuple[Any, ...]] = {
    "examples": (0, 50, 300, 2_000, 20_000),
    "variants": (1, 50),
    "horizon_months": (3, 12, 36),
    "traffic": (1_000, 100_000, 1_000_000, 10_000_000),
    "budget_usd": (30.0, 1_000.0, None),
    "model": ("qwen2.5-0.5b", "llama-3.3-70b"),
    "hardware": (("rtx-3060", 1), ("h100-sxm", 8)),
}
"""Values tried for fields that are not a choice of words. Traffic is tried in calls a month."""


class Assumed(msgspec.Struct, frozen=True):
    """A field that was filled in, with what and why."""

    field: str
    value: Any
    why: str


def completed(situation: Situation, access: str | None = None) -> tuple[Situation, list[Assumed]]:
    """The situation with every silent field filled in, and what was filled in.

    `access` is how the catalog says that the named model's weights can be reached. A model, hardware and a budget may
    stay null: any model of a common size, rented hardware, no limit.
    """
    found: list[Assumed] = []

    def fill(field: str, value: Any, why: str) -> Any:
        given = getattr(situation, field)
        if given is not None:
            return given
        found.append(Assumed(field, value, why))
        return value

    values = {field: fill(field, value, why) for field, (value, why) in _PLAIN.items()}
    changes = situation.knowledge_changes
    if changes in (None, "never"):
        knowledge, why = "none", "no missing knowledge was mentioned"
    else:
        knowledge, why = "some", "changing knowledge was mentioned"
    values["needs_domain_knowledge"] = fill("needs_domain_knowledge", knowledge, why)
    values["knowledge_changes"] = fill("knowledge_changes", "never", "no change was mentioned")
    reachable = "models with open weights exist for most tasks" if access is None else "the catalog knows the model so"
    values["weights_access"] = fill("weights_access", access or "open", reachable)
    fill("model", None, f"a common size, such as {DEFAULT_MODEL}")
    fill("hardware", None, "the cheapest rented GPUs that fit")
    fill("budget_usd", None, "no limit was mentioned")
    values["traffic"] = _traffic(situation.traffic, found)
    return msgspec.structs.replace(situation, **values), found


def completed_traffic(given: Traffic | None) -> Traffic:
    """The traffic with every silent field filled in."""
    traffic = given or Traffic()
    values = {
        name: getattr(traffic, name) if getattr(traffic, name) is not None else value
        for name, value in _TRAFFIC.items()
    }
    tuned = traffic.tuned_prompt_tokens
    values["tuned_prompt_tokens"] = values["prompt_tokens"] // 2 if tuned is None else tuned
    return Traffic(**values)


def _traffic(given: Traffic | None, found: list[Assumed]) -> Traffic:
    traffic = completed_traffic(given)
    if given is None:
        found.append(Assumed("traffic", traffic.requests_per_month, "a small service, in calls a month"))
    else:
        names = (*_TRAFFIC, "tuned_prompt_tokens")
        missing = [name for name in names if getattr(given, name) is None and name != "growth_per_month"]
        found += [Assumed(f"traffic.{name}", getattr(traffic, name), "a common value") for name in missing]
    return traffic


def tried(field: str) -> tuple[Any, ...]:
    """The values over which a field is tried."""
    if field in TRIED:
        return TRIED[field]
    return (False, True) if is_yes_or_no(field) else choices(field)
