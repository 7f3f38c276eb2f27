"""What rules look at: the fields of a completed situation, and what follows from them."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from tutelage_advisor.advice import Method
    from tutelage_advisor.situation import Situation
    from tutelage_advisor.world import World

DataState = Literal["few", "noisy", "enough", "plenty"]
Volume = Literal["pays", "pays-little", "never", "not-tunable"]

TUNABLE = ("open", "vendor")
"Routes by which a model can be tuned."

MINIMUM = {"narrow": 100, "medium": 500, "broad": 2_000}
"""Good examples to begin tuning with. OpenAI's guide sees gains from 50 to 100 on, Google's starts at 100, both for a
narrow task; breadth multiplies what has to be covered."""

ROBUST = {"narrow": 1_000, "medium": 3_000, "broad": 10_000}
"""Good examples for robust results. LIMA (arXiv 2305.11206) used 1,000 curated ones, Google scales to thousands."""

NOISY_YIELD = 9 / 52
"""Share of noisy examples that is worth keeping: AlpaGasus (arXiv 2307.08701) kept 9,000 of 52,000 and did better."""

EPOCHS = 3
"Passes over the data that costs and recipes reckon with."

LARGE_DATA, HUGE_DATA = 10_000, 50_000
"Good examples from which full tuning may learn more than LoRA, and from which it can fill every weight."

CLEAR_SAVING = 0.8
"Tuning saves clearly when its present cost is at most this share of prompting's."

LENGTHS = (256, 512, 1_024, 2_048, 4_096, 8_192)
"Lengths of rows that are trained on, in tokens."

MANY_VARIANTS = 5
"Variants from which serving adapters over one base matters."


def data_state(case: Situation) -> DataState:
    """Whether the examples in hand will do for the task's breadth.

    Noisy ones are a cleaning job when enough would be left over, else they are few.
    """
    examples, breadth = case.examples or 0, case.task_breadth or "medium"
    if case.example_quality == "noisy":
        return "noisy" if examples * NOISY_YIELD >= MINIMUM[breadth] else "few"
    if examples < MINIMUM[breadth]:
        return "few"
    return "plenty" if examples >= ROBUST[breadth] else "enough"


def data_scale(case: Situation) -> Literal["small", "large", "huge"]:
    """How much good data there is to learn from, whatever the breadth."""
    good = 0 if case.example_quality == "noisy" else case.examples or 0
    return "huge" if good >= HUGE_DATA else "large" if good >= LARGE_DATA else "small"


def max_length(case: Situation) -> int:
    """Room for one and a half times a usual example, as a power of 2 between 256 and 8,192."""
    traffic = case.traffic
    tokens = (traffic.tuned_prompt_tokens or 0) + (traffic.output_tokens or 0) if traffic else 0
    return LENGTHS[min(bisect_left(LENGTHS, 1.5 * tokens), len(LENGTHS) - 1)]


def facts_of(case: Situation, world: World) -> dict[str, Any]:
    """Every fact of a completed situation by its name, but for `volume`, which depends on the method."""
    facts: dict[str, Any] = msgspec.structs.asdict(case)
    facts["tuning_route"] = world.route(case)
    facts["data_state"] = data_state(case)
    facts["data_scale"] = data_scale(case)
    facts["many_variants"] = (case.variants or 1) >= MANY_VARIANTS
    facts["model_size"] = world.model_size(case)
    tunings = world.tunings(case)
    fitting = [method for method, tuning in tunings.items() if tuning.fits]
    affordable = world.affordable(case, fitting)
    for method in tunings:
        facts[f"{method}_fits"] = method in fitting
        facts[f"{method}_affordable"] = method in affordable or method not in fitting
    facts["budget_state"] = "over" if fitting and not affordable else "within"
    facts["lora_needs_more_gpus"] = "lora" in fitting and tunings["lora"].gpus > tunings["qlora"].gpus
    return facts


FOLLOWED = frozenset(
    {
        *("examples", "example_quality", "task_breadth", "weights_access", "data_may_leave", "traffic", "model"),
        *("hardware", "variants", "budget_usd", "prices"),
    }
)
"Fields from which other facts follow than `volume`."


def facts_with(facts: dict[str, Any], case: Situation, field: str, world: World) -> dict[str, Any]:
    """The facts of a situation that differs from the one with `facts` in one field."""
    return facts_of(case, world) if field in FOLLOWED else {**facts, field: getattr(case, field)}


def volumes(route: str) -> tuple[Volume, ...]:
    """What `volume` may be on a route."""
    return ("pays", "pays-little", "never") if route in TUNABLE else ("not-tunable",)


def volume(case: Situation, world: World, method: Method) -> Volume:
    """Whether tuning by this method pays back at this traffic: net present value over 0, and how clearly."""
    if world.route(case) not in TUNABLE:
        return "not-tunable"
    share = world.tuned_to_prompt(case, method)
    return "pays" if share <= CLEAR_SAVING else "pays-little" if share < 1 else "never"
