"""Random situations for the laws, and the day on which all tests ask."""

from __future__ import annotations

import datetime
from typing import Any

from hypothesis import strategies as st

from tutelage_advisor.situation import Hardware, Prices, Situation, Traffic

TODAY = datetime.date(2026, 11, 24)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "explainable_in_prompt": st.booleans(),
    "base_capability": st.sampled_from(["weak", "partial", "strong"]),
    "iteration_speed": st.sampled_from(["hours", "days", "weeks"]),
    "examples": st.sampled_from([0, 20, 99, 100, 450, 1_000, 2_500, 9_000, 60_000, 200_000]),
    "example_quality": st.sampled_from(["noisy", "clean", "reviewed"]),
    "task_breadth": st.sampled_from(["narrow", "medium", "broad"]),
    "needs_strict_format": st.booleans(),
    "needs_domain_knowledge": st.sampled_from(["none", "some", "deep"]),
    "knowledge_changes": st.sampled_from(["never", "monthly", "weekly", "daily"]),
    "quality_critical": st.booleans(),
    "forgetting_sensitive": st.booleans(),
    "weights_access": st.sampled_from(["open", "open", "api-only", "api-tunable"]),
    "data_may_leave": st.booleans(),
    "traffic": st.builds(
        Traffic,
        requests_per_month=st.sampled_from([0, 500, 40_000, 700_000, 5_000_000, 90_000_000]),
        prompt_tokens=st.sampled_from([50, 900, 4_000]),
        tuned_prompt_tokens=st.sampled_from([40, 300, 900]),
        output_tokens=st.sampled_from([5, 200, 900]),
        growth_per_month=st.sampled_from([0.0, 0.08, -0.05]),
        cached_share=st.sampled_from([0.0, 0.7]),
    ),
    "prices": st.builds(
        Prices, input_per_million=st.sampled_from([None, 0.1, 3.0]), gpu_per_hour=st.sampled_from([None, 0.5, 4.0])
    ),
    "model": st.sampled_from(["qwen2.5-0.5b", "llama-3.1-8b", "llama-3.3-70b"]),
    "hardware": st.builds(
        Hardware, gpu=st.sampled_from(["rtx-3060", "rtx-4090", "h100-sxm"]), count=st.sampled_from([1, 8])
    ),
    "variants": st.sampled_from([1, 40]),
    "budget_usd": st.sampled_from([1.0, 40.0, 5_000.0]),
    "horizon_months": st.sampled_from([1, 12, 30]),
}


def situations(**fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Situation]:
    """Situations in which any field may be silent, but for those that are fixed."""
    silent = {name: st.none() | values for name, values in FIELDS.items()}
    return st.builds(Situation, task=st.just("a task"), **(silent | fixed))
