"""Signs that a policy learns to please its reward instead of people (Gao et al. 2023, "Scaling Laws for Reward Model
Overoptimization"): what is measured now is compared with what was measured first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

Measured = Mapping[str, tuple[float, float]]
"""Means with their standard errors, by name."""

NOISE = 2.0
"How many standard errors a difference must exceed."


class Watch:
    """Compares iterations with the first one. What it remembers is kept in a checkpoint's `state`."""

    def __init__(self, state: dict[str, float], *, kl_budget: float | None, length_drift: float | None) -> None:
        self._state = state
        self._kl_budget = kl_budget
        self._length_drift = length_drift

    def look(self, step: int, proxy: str, others: Iterable[str], measured: Measured) -> list[str]:
        """What there is to say now; each kind of thing is said once a stage.

        Args:
            proxy: the name of the reward that is trained on.
            others: the names of rewards that are not.
            measured: these, and `length` (tokens) and `kl` (nats an answer) where they are known.
        """
        if f"watch.{proxy}" not in self._state:
            self._state["watch.step"] = step
            for name, (mean, error) in measured.items():
                self._state[f"watch.{name}"], self._state[f"watch.{name}.error"] = mean, min(error, 1e30)
            return []
        found = [self._hacked(proxy, name, measured) for name in others]
        found += [self._spent(measured), self._drifted(measured)]
        return [said for said in found if said]

    def _hacked(self, proxy: str, other: str, measured: Measured) -> str:
        if not (self._moved(proxy, measured) > 0 > self._moved(other, measured)):
            return ""
        said = (
            f"reward hacking? since step {self._state['watch.step']:.0f} the reward rose "
            f"{self._from_to(proxy, measured)} while {other}, which is not trained on, fell "
            f"{self._from_to(other, measured)}: look at the samples; "
            "a larger kl_coefficient or fewer steps keep the policy where the reward can be believed"
        )
        return self._once(f"hacked.{other}", said)

    def _spent(self, measured: Measured) -> str:
        if self._kl_budget is None or "kl" not in measured or measured["kl"][0] <= self._kl_budget:
            return ""
        said = (
            f"the policy is {measured['kl'][0]:.3g} nats an answer away from the reference, beyond kl_budget "
            f"({self._kl_budget:g}): rewards are believed less the further it is"
        )
        return self._once("spent", said)

    def _drifted(self, measured: Measured) -> str:
        before, now = self._state["watch.length"], measured["length"][0]
        if self._length_drift is None or not self._moved("length", measured):
            return ""
        if before / self._length_drift <= now <= before * self._length_drift:
            return ""
        said = f"length drift: answers went {self._from_to('length', measured)} tokens; does the reward pay for length?"
        return self._once("drifted", said)

    def _moved(self, name: str, measured: Measured) -> int:
        """1 or -1 where a mean rose or fell by more than noise, else 0."""
        mean, error = measured[name]
        first, first_error = self._state[f"watch.{name}"], self._state[f"watch.{name}.error"]
        difference = mean - first
        if abs(difference) <= NOISE * math.hypot(error, first_error):
            return 0
        return 1 if difference > 0 else -1

    def _from_to(self, name: str, measured: Measured) -> str:
        return f"from {self._state[f'watch.{name}']:.3g} to {measured[name][0]:.3g}"

    def _once(self, kind: str, said: str) -> str:
        if self._state.get(f"said.{kind}"):
            return ""
        self._state[f"said.{kind}"] = 1.0
        return said
