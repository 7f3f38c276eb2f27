"""What prompting and tuning cost: upfront and by the month, when tuning pays back, and how sure that is.

`compare(inputs)` is exact to the cent; `simulate` and `swings` vary the uncertain inputs.
"""

from __future__ import annotations

from tutelage_advisor.costs.compare import compare
from tutelage_advisor.costs.inputs import CostInputs, Item, Option, Serving
from tutelage_advisor.costs.results import Costs
from tutelage_advisor.costs.uncertain import simulate, swings

__all__ = ["CostInputs", "Costs", "Item", "Option", "Serving", "compare", "simulate", "swings"]
