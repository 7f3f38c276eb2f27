"""From a situation to the inputs of its costs: what is paid upfront, and how each option is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tutelage_advisor.costs import upfront
from tutelage_advisor.costs.hosting import gpu_seconds, gpus_needed
from tutelage_advisor.costs.inputs import HOURS_PER_MONTH, CostInputs, Option, Serving
from tutelage_advisor.facts import EPOCHS, NOISY_YIELD
from tutelage_advisor.fitting import cheapest, offer
from tutelage_advisor.situation import Prices, Traffic

if TYPE_CHECKING:
    from tutelage_advisor.advice import Method
    from tutelage_advisor.catalog import ApiPrice, Gpu
    from tutelage_advisor.situation import Situation
    from tutelage_advisor.world import World

HOSTED_OPEN = (("together-llama-3.1-8b", 16_000_000_000), ("together-llama-3.3-70b", 10**15))
"Hosted open models whose price stands for models of up to so many parameters."

DEFAULT_API = "gpt-5.4-mini"
"Whose price stands for an API model that is not named, or not known."

REPEATED, REPEATED_TUNED = 0.05, 0.01
"Share of calls repeated because a strict format was missed, prompted and tuned. Judgement."

RETRIEVED_TOKENS = 1_500
"Tokens of the passages that retrieval puts into a prompt: five of 300. Judgement."

INDEX_PER_MONTH = 50.0
"Dollars a month for a small hosted index. Judgement."

_UTILISATION, _NO_PRICES = Serving().utilisation, Prices()

AGAIN_STABLE, AGAIN_CHANGING = 12, 6
"Months after which a model is tuned again, where knowledge is stable and where it changes. Judgement."


def inputs(case: Situation, world: World, method: Method, retrieval: bool) -> CostInputs:
    """Prompting; retrieval where facts are missing; tuning where the model can be tuned."""
    traffic, people = _traffic(case), _people(case)
    prompting = Option(name="prompt", serving=base_serving(case, world), upfront=upfront.prompting(people))
    options = [prompting]
    if retrieval:
        tokens = prompting.serving.prompt_tokens + RETRIEVED_TOKENS
        serving = msgspec.structs.replace(prompting.serving, prompt_tokens=tokens, fixed_per_month=INDEX_PER_MONTH)
        if serving.gpus:
            serving = msgspec.structs.replace(serving, gpu_seconds_per_call=_host(case, world, tokens)[2])
        options.append(Option(name="retrieve", serving=serving, upfront=upfront.retrieving(people)))
    if world.route(case) in ("open", "vendor"):
        options.append(_tuning(case, world, method))
    return CostInputs(
        requests_per_month=traffic.requests_per_month or 0,
        growth_per_month=traffic.growth_per_month or 0.0,
        horizon_months=case.horizon_months or 12,
        options=options,
    )


def key(case: Situation) -> tuple[Any, ...]:
    """The parts of a situation that costs depend on, as a key."""
    hardware = case.hardware and (case.hardware.gpu, case.hardware.count, case.hardware.nodes)
    prices = case.prices and msgspec.structs.astuple(case.prices)
    return (
        msgspec.structs.astuple(_traffic(case)),
        prices,
        hardware,
        case.model,
        case.horizon_months,
        case.weights_access,
        case.data_may_leave,
        _data_work(case),
        case.needs_strict_format,
        _is_stable(case),
    )


def base_serving(case: Situation, world: World) -> Serving:
    """How the prompted base is paid for: by the token, or on your own GPUs where data may not leave."""
    traffic, given = _traffic(case), _prices(case)
    prompt = float(traffic.prompt_tokens or 0)
    serving = Serving(
        prompt_tokens=prompt,
        cached_tokens=prompt * (traffic.cached_share or 0.0),
        output_tokens=float(traffic.output_tokens or 0),
        repeated_share=REPEATED if case.needs_strict_format else 0.0,
    )
    if case.weights_access == "open" and case.data_may_leave is False and given.input_per_million is None:
        gpu, gpus, seconds = _host(case, world, prompt)
        return msgspec.structs.replace(
            serving, gpus=gpus, gpu_per_hour=_gpu_price(case, gpu), gpu_seconds_per_call=seconds
        )
    price = base_price(case, world)
    fresh = _first(given.input_per_million, price.input, price.tuned_input, 0.0)
    return msgspec.structs.replace(
        serving,
        input_per_million=fresh,
        cached_input_per_million=_first(
            given.cached_input_per_million, _unless(given.input_per_million, price.cached_input), fresh
        ),
        output_per_million=_first(given.output_per_million, price.output, price.tuned_output, fresh),
    )


def _tuning(case: Situation, world: World, method: Method) -> Option:
    people, usd = _people(case), world.training_usd(case, method)
    return Option(
        name="fine-tune",
        serving=_tuned_serving(case, world),
        upfront=upfront.tuning(people, *_data_work(case), usd),
        again_every_months=AGAIN_STABLE if _is_stable(case) else AGAIN_CHANGING,
        again=upfront.tuning_again(people, usd),
    )


def _data_work(case: Situation) -> tuple[int, int, int]:
    """Examples to write, kept noisy ones for people to correct, and those that are trained on in the end."""
    from tutelage_advisor.world import train_on

    trained, examples = train_on(case), case.examples or 0
    if case.example_quality == "noisy":
        kept = min(trained, int(examples * NOISY_YIELD))
        return trained - kept, kept, trained
    return trained - min(trained, examples), 0, trained


def _tuned_serving(case: Situation, world: World) -> Serving:
    """By the token where a vendor hosts what it tuned, else by the GPU-hour.

    What tuning takes out of a prompt is what stayed the same in it, so cached tokens are the first to go.
    """
    traffic, given = _traffic(case), _prices(case)
    prompt, tuned = float(traffic.prompt_tokens or 0), float(traffic.tuned_prompt_tokens or 0)
    cached = max(0.0, prompt * (traffic.cached_share or 0.0) - max(0.0, prompt - tuned))
    serving = Serving(
        prompt_tokens=tuned,
        cached_tokens=min(cached, tuned),
        output_tokens=float(traffic.output_tokens or 0),
        repeated_share=REPEATED_TUNED if case.needs_strict_format else 0.0,
    )
    price = base_price(case, world) if world.route(case) == "vendor" else None
    listed = price.tuned_input if price else None
    if given.tuned_input_per_million is None and listed is None:
        gpu, gpus, seconds = _host(case, world, tuned)
        return msgspec.structs.replace(
            serving, gpus=gpus, gpu_per_hour=_gpu_price(case, gpu), gpu_seconds_per_call=seconds
        )
    fresh = _first(given.tuned_input_per_million, listed, 0.0)
    cached_price = _first(given.tuned_cached_input_per_million, price.tuned_cached_input if price else None, fresh)
    output = _first(given.tuned_output_per_million, price.tuned_output if price else None, fresh)
    return msgspec.structs.replace(
        serving, input_per_million=fresh, cached_input_per_million=cached_price, output_per_million=output
    )


def base_price(case: Situation, world: World) -> ApiPrice:
    """The catalog's price for the prompted base: its own, or that of a hosted model of its size."""
    return world.once(("base price", case.model, case.weights_access), lambda: _base_price(case, world))


def _base_price(case: Situation, world: World) -> ApiPrice:
    own = world.hosted(case.model)
    if own is not None:
        return own
    if case.weights_access == "open" or world.entry(case.model) is not None:
        count = world.parameters(world.trainable(case))
        return _listed(next(name for name, limit in HOSTED_OPEN if count <= limit), world)
    day = world.today.isoformat()
    if case.weights_access == "api-tunable" and case.model is None:
        offers = [
            price for price in world.catalog.api_prices if price.tunable(day) and price.input and price.tuned_input
        ]
        if offers:
            return min(offers, key=lambda price: (price.input or 0.0, price.model))
    return _listed(DEFAULT_API, world)


def _listed(name: str, world: World) -> ApiPrice:
    return world.hosted(name) or world.catalog.api_price(name)


def vendor_training_usd(case: Situation, world: World) -> float:
    """Dollars of one training by a vendor: tokens of all examples times epochs at its training price."""
    job = world.job(case)
    price = _first(_prices(case).training_per_million, base_price(case, world).training, 0.0)
    return job.examples * job.tokens_per_example * EPOCHS / 1e6 * price


def prices_used(case: Situation, world: World) -> list[ApiPrice]:
    """The catalog's prices that the costs rest on."""
    given = _prices(case)
    by_hour = case.weights_access == "open" and case.data_may_leave is False
    return [] if given.input_per_million is not None or by_hour else [base_price(case, world)]


def price_names(case: Situation, world: World) -> set[str]:
    """The names under which the catalog lists the prices that the costs rest on."""
    names = {price.model for price in prices_used(case, world)}
    gpu = _hosting_gpu(case, world)
    if gpu is not None and gpu.prices and _prices(case).gpu_per_hour is None:
        names.add(f"{gpu.name} at {offer(gpu).provider}")
    return names


def notes(case: Situation, world: World) -> list[str]:
    """What the costs assume, in sentences."""
    found = [
        f"{price.model} at ${price.input or price.tuned_input:g} and ${price.output or price.tuned_output:g} a million "
        f"tokens in and out ({world.catalog.source(price.source)}, read {price.read})"
        for price in prices_used(case, world)
    ]
    if world.route(case) in ("open", "vendor"):
        found += _tuned_notes(case, world)
    found.append(f"people at ${_people(case):g} an hour; later money is discounted by 8% a year")
    return found


def _tuned_notes(case: Situation, world: World) -> list[str]:
    serving, gpu = _tuned_serving(case, world), _hosting_gpu(case, world)
    months = AGAIN_STABLE if _is_stable(case) else AGAIN_CHANGING
    tries = f"{upfront.TRIES} trainings until one is kept; tuned again every {months} months"
    if gpu is None:
        prices = f"${serving.input_per_million:g} and ${serving.output_per_million:g} a million tokens in and out"
        return [f"the tuned model is hosted by the token, at {prices}", tries]
    listed = f" ({offer(gpu).provider}, read {offer(gpu).read})" if gpu.prices else ""
    given = "" if _prices(case).gpu_per_hour is not None else listed
    hosted = f"{serving.gpus:g} x {gpu.name} at ${serving.gpu_per_hour:g} an hour{given}"
    return [f"the tuned model is hosted on {hosted}, always on", tries]


def _hosting_gpu(case: Situation, world: World) -> Gpu | None:
    """The GPU on which the tuned model is hosted; None where it is hosted by the token, or can't be tuned."""
    if world.route(case) not in ("open", "vendor"):
        return None
    serving = _tuned_serving(case, world)
    return _host(case, world, serving.prompt_tokens)[0] if serving.gpus else None


def _host(case: Situation, world: World, prompt_tokens: float) -> tuple[Gpu, float, float]:
    """The GPU that hosts the model most cheaply over the horizon, how many, and GPU-seconds of a call.

    Always one of the GPUs at hand where the situation names some.
    """
    traffic, model, price = _traffic(case), world.trainable(case), _prices(case).gpu_per_hour
    calls, written = traffic.requests_per_month, traffic.output_tokens
    load = (calls, written, traffic.growth_per_month, case.horizon_months, prompt_tokens)
    key = ("host", model, case.hardware.gpu if case.hardware else None, price, *load)
    return world.once(key, lambda: _cheapest_host(case, world, model, prompt_tokens))


def _cheapest_host(case: Situation, world: World, model: str, prompt_tokens: float) -> tuple[Gpu, float, float]:
    count, output, given = world.parameters(model), float(_traffic(case).output_tokens or 0), _prices(case).gpu_per_hour
    monthly, hosts = _monthly_calls(case), []
    for gpu, needed, flops, bandwidth, listed in _possible_hosts(case, world, model, count):
        seconds = gpu_seconds(count, prompt_tokens, output, flops, bandwidth)
        always, busy = needed * HOURS_PER_MONTH, seconds / 3600 / _UTILISATION
        hours = sum(months * max(always, calls * busy) for calls, months in monthly)
        hosts.append((hours * (listed if given is None else given), gpu.name, gpu, float(needed), seconds))
    return min(hosts, key=lambda host: host[:2])[2:]


def _possible_hosts(
    case: Situation, world: World, model: str, count: int
) -> list[tuple[Gpu, int, float, float, float]]:
    """GPUs that may host a model, each with how many it takes, their FLOP/s, bytes a second and dollars an hour."""

    def find() -> list[tuple[Gpu, int, float, float, float]]:
        return [
            (
                gpu,
                gpus_needed(count, gpu.usable),
                gpu.peak_tflops("bf16") * 1e12,
                gpu.bandwidth_gb_s.value * 1e9,
                cheapest(gpu) if gpu.prices else 0.0,
            )
            for gpu in world.gpus(case)
        ]

    return world.once(("hosts", model, case.hardware.gpu if case.hardware else None), find)


def _monthly_calls(case: Situation) -> list[tuple[float, int]]:
    """Calls a month, and in how many months there are so many."""
    traffic, months = _traffic(case), case.horizon_months or 12
    calls, growth = float(traffic.requests_per_month or 0), 1 + (traffic.growth_per_month or 0.0)
    return [(calls, months)] if growth == 1 else [(calls * growth**month, 1) for month in range(months)]


def _gpu_price(case: Situation, gpu: Gpu) -> float:
    given = _prices(case).gpu_per_hour
    return given if given is not None else cheapest(gpu) if gpu.prices else 0.0


def _is_stable(case: Situation) -> bool:
    return case.needs_domain_knowledge == "none" or case.knowledge_changes == "never"


def _people(case: Situation) -> float:
    return _first(_prices(case).people_per_hour, upfront.PEOPLE_PER_HOUR)


def _traffic(case: Situation) -> Traffic:
    return case.traffic or Traffic()


def _prices(case: Situation) -> Prices:
    return case.prices or _NO_PRICES


def _first(*values: float | None) -> float:
    return next((value for value in values if value is not None), 0.0)


def _unless(given: float | None, value: float | None) -> float | None:
    return None if given is not None else value
