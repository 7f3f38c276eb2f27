"""Memory, time and money of a training run before it starts, from formulas; no torch, no weights.

`estimate(request)` answers for one run, `what_fits` turns the question round, `inference_memory` is for serving.
"""

from tutelage_advisor.estimates.architecture import Architecture
from tutelage_advisor.estimates.estimating import Estimate, estimate
from tutelage_advisor.estimates.inference import InferenceMemory, inference_memory
from tutelage_advisor.estimates.memory import Memory
from tutelage_advisor.estimates.models import architecture_of
from tutelage_advisor.estimates.request import EstimateRequest
from tutelage_advisor.estimates.searching import Option, largest_models, what_fits

__all__ = [
    "Architecture",
    "Estimate",
    "EstimateRequest",
    "InferenceMemory",
    "Memory",
    "Option",
    "architecture_of",
    "estimate",
    "inference_memory",
    "largest_models",
    "what_fits",
]
