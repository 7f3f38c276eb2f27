"""What the advisor knows beside the situation: the catalog, the day, estimates; looked up once for every question."""

from __future__ import annotations

import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from tutelage.errors import TutelageError
from tutelage_advisor import costing, fitting
from tutelage_advisor.assumed import DEFAULT_MODEL
from tutelage_advisor.catalog import load
from tutelage_advisor.costs import compare
from tutelage_advisor.costs.uncertain import Closed
from tutelage_advisor.costs.upfront import TRIES
from tutelage_advisor.decide import METHODS
from tutelage_advisor.estimates import Architecture, architecture_of
from tutelage_advisor.estimates.models import from_config
from tutelage_advisor.facts import MINIMUM, NOISY_YIELD, ROBUST, max_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tutelage_advisor.advice import Method
    from tutelage_advisor.catalog import ApiPrice, Catalog, Gpu, ModelEntry
    from tutelage_advisor.costs import Costs
    from tutelage_advisor.fitting import Tuning
    from tutelage_advisor.situation import Situation

T = TypeVar("T")
Route = Literal["open", "vendor", "vendor-closed", "api-only", "data-stays"]

REMEMBERED = 50_000
"Answers that a world remembers before it begins anew: about 20 MB."

SMALL, LARGE = 1_500_000_000, 10_000_000_000
"Parameters below which a model is small, and from which it is large."


class World:
    """The catalog on one day. Everything that it answers depends on its arguments alone, so it may be kept for many
    questions, and asked by several threads."""

    def __init__(self, catalog: Catalog | None = None, today: datetime.date | None = None) -> None:
        self.catalog = catalog or load()
        self.today = today or datetime.date.today()
        self._known: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` answers, which depends on `key` alone; made once, as long as there is room to remember it."""
        try:
            found: T = self._known[key]
            return found
        except KeyError:
            pass
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        made = self._known[key] = make()
        return made

    def is_known(self, model: str) -> bool:
        """Whether a model is hosted, or its shape was looked up already."""
        return ("shape", model) in self._known or self.hosted(model) is not None

    def check(self, case: Situation) -> None:
        """Raise TutelageError where the situation names a GPU or an open model that is not known."""
        if case.hardware is not None:
            self.gpus(case)
        if case.model is not None and case.weights_access in (None, "open") and self.hosted(case.model) is None:
            self.parameters(case.model)

    def access(self, model: str | None) -> Literal["open", "api-only", "api-tunable"] | None:
        """How a model's weights can be reached, where the catalog knows the model."""
        if model is None:
            return None
        if self.entry(model) is not None:
            return "open"
        price = self.hosted(model)
        if price is None:
            return None
        return "api-tunable" if price.tunable(self.today.isoformat()) else "api-only"

    def hosted(self, model: str | None) -> ApiPrice | None:
        """The prices of a model that vendors host, if it is known as one."""
        found: ApiPrice | None = self._find("api_price", model)
        return found

    def entry(self, model: str | None) -> ModelEntry | None:
        """An open model of the catalog, if it is one."""
        found: ModelEntry | None = self._find("model", model)
        return found

    def _find(self, kind: str, name: str | None) -> Any:
        return self.once((kind, name), lambda: self._look_up(kind, name)) if name else None

    def _look_up(self, kind: str, name: str) -> Any:
        try:
            return getattr(self.catalog, kind)(name)
        except TutelageError:
            return None

    def route(self, case: Situation) -> Route:
        """Whether the model can be tuned, and where."""
        if case.weights_access != "api-tunable":
            return "open" if case.weights_access == "open" else "api-only"
        if case.data_may_leave is False:
            return "data-stays"
        day = self.today.isoformat()
        if case.model is None:
            return "vendor" if any(price.tunable(day) for price in self.catalog.api_prices) else "vendor-closed"
        price = self.hosted(case.model)
        return "vendor" if price is None or price.tunable(day) else "vendor-closed"

    def trainable(self, case: Situation) -> str:
        """The open model that estimates are made for: the situation's, else one of a common size."""
        model, is_open = case.model, case.weights_access == "open"
        if model is None:
            return DEFAULT_MODEL

        def name() -> str:
            return model if self.entry(model) or (is_open and not self.hosted(model)) else DEFAULT_MODEL

        return self.once(("trainable", model, is_open), name)

    def hub_name(self, model: str) -> str:
        """What a recipe calls an open model.

        Of a catalog model's names on the hub, one that was taught to converse (and has a chat template) is preferred.
        """
        entry = self.entry(model)
        if entry is None or "/" in model or ":" in model:
            return model
        names = [name for name in (entry.hub, *entry.aliases) if "/" in name]
        taught = [name for name in names if name.lower().endswith(("instruct", "chat", "-it", "chat-hf", "chat-v1.0"))]
        return next(iter(get_close_matches(model, taught or names, n=1, cutoff=0)), model)

    def parameters(self, model: str) -> int:
        """How many parameters an open model has.

        Raises:
            TutelageError: when it is neither in the catalog nor a folder or config.json.
        """
        entry = self.entry(model)
        return entry.published_parameters if entry and entry.published_parameters else self.shape(model).parameters

    def shape(self, model: str) -> Architecture:
        """What an open model is made of; read or built once.

        Raises:
            TutelageError: when it is neither in the catalog nor a folder or config.json.
        """

        def build() -> Architecture:
            entry = self.entry(model)
            return from_config(entry.config) if entry else architecture_of(model, self.catalog)

        return self.once(("shape", model), build)

    def model_size(self, case: Situation) -> Literal["small", "medium", "large"]:
        """The size class of the model to be tuned."""
        count = self.parameters(self.trainable(case))
        return "small" if count < SMALL else "large" if count >= LARGE else "medium"

    def job(self, case: Situation) -> fitting.Job:
        """What would be trained: the usable examples, or the fewest that would do, with room for a long tuned call."""
        model = self.trainable(case)
        return fitting.Job(
            model=model,
            shape=self.shape(model),
            examples=train_on(case),
            tokens_per_example=_tokens_per_example(case),
            seq_len=max_length(case),
            usd_per_gpu_hour=case.prices.gpu_per_hour if case.prices else None,
        )

    def _place(self, case: Situation) -> tuple[str, int, Any]:
        """All that the memory of a training depends on, as a key."""
        return self.trainable(case), max_length(case), _hardware(case)

    def tunings(self, case: Situation) -> dict[Method, Tuning]:
        """Whether each method fits the situation's hardware, or which rented hardware it takes."""
        return self.once(
            ("tunings", self._place(case)), lambda: {method: self._fit(case, method) for method in METHODS}
        )

    def _fit(self, case: Situation, method: Method) -> Tuning:
        key = ("fit", method, self._place(case))
        return self.once(key, lambda: fitting.fit(self.job(case), method, self.gpus(case), case.hardware))

    def timed(self, case: Situation, method: Method) -> Tuning:
        """One method with hours and dollars of a training."""
        return fitting.scaled(self._rate(case, method), _million_tokens(case))

    def _rate(self, case: Situation, method: Method) -> Tuning:
        """The same for a million tokens: hours and dollars grow with them."""

        def find() -> Tuning:
            job = fitting.a_million(self.job(case))
            return fitting.timed(job, self._fit(case, method), self.gpus(case), case.hardware)

        return self.once(("rate", method, case.prices and case.prices.gpu_per_hour, self._place(case)), find)

    def gpus(self, case: Situation) -> list[Gpu]:
        """The situation's GPU, or those that are worth renting."""
        name = case.hardware.gpu if case.hardware else None
        if name is None:
            return self.once(("gpus", None), lambda: fitting.rentable(self.catalog))
        return self.once(("gpus", name), lambda: [self.catalog.gpu(name, "hardware.gpu")])

    def training_usd(self, case: Situation, method: Method) -> float:
        """Dollars of one training by a method; a vendor's price where it tunes, rented hardware where nothing fits."""
        if self.route(case) == "vendor":
            return costing.vendor_training_usd(case, self)
        rate = self._rate(case, method)
        if not rate.fits:
            rented = self.cheapest_that_fits(case)
            return (rented.usd or 0.0) if rented else 0.0
        return (rate.usd or 0.0) * _million_tokens(case)

    def affordable(self, case: Situation, methods: Iterable[Method]) -> list[Method]:
        """Those of some methods by which a training, with the failed tries that are usual, is within the budget."""
        budget = case.budget_usd
        return [method for method in methods if budget is None or self.training_usd(case, method) * TRIES <= budget]

    def cheapest_that_fits(self, case: Situation) -> Tuning | None:
        """The rented hardware with the lowest price an hour on which QLoRA, which needs least, tunes the model."""
        rented = msgspec.structs.replace(case, hardware=None)

        def find() -> Tuning | None:
            tuning, job = self._fit(rented, "qlora"), fitting.a_million(self.job(rented))
            return fitting.least(job, tuning, self.gpus(rented)) if tuning.fits else None

        key = ("least", case.prices and case.prices.gpu_per_hour, self._place(rented))
        found = self.once(key, find)
        return found and fitting.scaled(found, _million_tokens(case))

    def largest_that_fits(self, case: Situation) -> Tuning | None:
        """The largest model of the catalog, below the wanted one, that QLoRA tunes on the hardware at hand."""
        wanted = self.parameters(self.trainable(case))
        smaller = [entry for entry in self.catalog.models if 0 < entry.published_parameters < wanted]
        for entry in sorted(smaller, key=lambda entry: -entry.published_parameters):
            other = msgspec.structs.replace(case, model=entry.name)
            found = self._fit(other, "qlora")
            if found.fits:
                return found
        return None

    def tuned_to_prompt(self, case: Situation, method: Method) -> float:
        """Present cost of tuning over the horizon as a share of that of prompting."""

        def share() -> float:
            prompt, tuned = Closed(costing.inputs(case, self, method, retrieval=False)).given()
            return tuned / prompt if prompt else float("inf")

        return self.once(("share", method, *costing.key(case)), share)

    def costs(self, case: Situation, method: Method, retrieval: bool, draws: int, seed: int) -> Costs:
        """The whole of the costs, with what they assume."""
        made = compare(costing.inputs(case, self, method, retrieval), draws, seed)
        return msgspec.structs.replace(made, assumptions=costing.notes(case, self))

    def warnings(self, case: Situation) -> list[str]:
        """Prices that were read long ago, among those that the advice uses, and vendors' closing dates."""
        used = costing.price_names(case, self)
        aged = self.once("stale", lambda: self.catalog.stale(self.today))
        found = [f"{stale}; check it" for stale in aged if stale.name in used]
        price = self.hosted(case.model)
        if self.route(case) == "vendor" and price is not None and price.tuning_until:
            found.append(f"{price.vendor} takes no new tuning jobs for {price.model} from {price.tuning_until} on")
        return found


def train_on(case: Situation) -> int:
    """Examples that would be trained on: the good ones in hand, or the fewest that would do where there are too few.

    Of noisy ones, those that are worth keeping, up to what robust results take.
    """
    examples, breadth = case.examples or 0, case.task_breadth or "medium"
    if case.example_quality == "noisy":
        examples = min(int(examples * NOISY_YIELD), ROBUST[breadth])
    return max(examples, MINIMUM[breadth])


def _million_tokens(case: Situation) -> float:
    """Millions of tokens of one pass over what would be trained on."""
    return train_on(case) * _tokens_per_example(case) / 1e6


def _tokens_per_example(case: Situation) -> float:
    traffic = case.traffic
    return float(max(8, (traffic.tuned_prompt_tokens or 0) + (traffic.output_tokens or 0))) if traffic else 8.0


def _hardware(case: Situation) -> tuple[str, int, int] | None:
    return (case.hardware.gpu, case.hardware.count, case.hardware.nodes) if case.hardware else None
