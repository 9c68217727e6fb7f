"""What a call costs, in US dollars: from a table of your own, from a price library, or from any function.

A price source takes the facts of an answer and returns a ``Decimal``, or None if it cannot tell. None is never zero:
an unknown model, or a count that is needed and was not reported, has no price. Nothing here reads the network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, timezone
from decimal import Context, Decimal, InvalidOperation, localcontext
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .types import ResponseMetadata, Usage

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LibraryPrices", "Number", "PriceChain", "PriceSource", "PriceTable", "Rates", "cost_of", "price_source"]

PriceSource: TypeAlias = Callable[[ResponseMetadata], Decimal | None]
"""Returns US dollars, or None if it cannot tell; called on the thread of the call, so it must not wait for anything."""

Number: TypeAlias = "Decimal | int | float | str"
"""An amount. A float means the decimal number it prints as; nothing is ever computed in floats."""

# The program may have set a precision, or traps, that would round or refuse our sums.
EXACT: Final = Context(prec=60, traps=[])

_MILLION_EXPONENT: Final = -6
_STANDARD_TIERS: Final = frozenset(("auto", "default", "standard", "on_demand"))
_ZERO: Final = Decimal(0)


def amount(value: object, what: str) -> Decimal:
    """Return *value* as an exact number.

    Raises:
        ValueError: It is no number, or not a finite one from 0 on.
    """
    if isinstance(value, (Decimal, int, float, str)) and not isinstance(value, bool):
        try:
            number = Decimal(repr(value) if isinstance(value, float) else value)
        except InvalidOperation:
            number = Decimal("NaN")
        if number.is_finite() and number >= 0:
            return number
    raise ValueError(f"{what} is {value!r}; it must be a number that is not negative")


def _rates_in(given: Mapping[str, object], what: str) -> dict[str, Decimal]:
    if unknown := sorted(str(name) for name in given if name not in RATES):
        raise ValueError(f"{what} has the unknown rate {', '.join(unknown)}; the rates are {', '.join(RATES)}")
    return {name: amount(value, f"{what}: {name}") for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the tokens of one model cost, in US dollars per million.

    A count is charged once: what is cached, audio or an image leaves the count it is a part of. Reasoning tokens are
    output and have no rate. A kind of token that a call used and that has no rate leaves the call without a price, but
    for those with a substitute:

    Attributes:
        input: Input tokens that are nothing more special.
        cached_input: Those served from the provider's cache; ``input`` if not given.
        cache_write: Those written to it; ``input`` if not given.
        output: Output tokens, reasoning included.
        audio_input: No substitute: sound costs many times what text does.
        cached_audio_input: ``audio_input`` if not given.
        audio_output: No substitute.
        image_input: ``input`` if not given.
        cached_image_input: ``image_input`` if not given.
        image_output: ``output`` if not given.
        per_call: On top, in dollars for one call.

    Raises:
        ValueError: A rate is not a number from 0 on.
    """

    input: Decimal | None = None
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    output: Decimal | None = None
    audio_input: Decimal | None = None
    cached_audio_input: Decimal | None = None
    audio_output: Decimal | None = None
    image_input: Decimal | None = None
    cached_image_input: Decimal | None = None
    image_output: Decimal | None = None
    per_call: Decimal | None = None

    def __post_init__(self) -> None:
        for name in RATES:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, amount(value, f"the rate {name}"))

    def cost(self, usage: Usage) -> Decimal | None:
        """Return what *usage* costs; None if a count or a rate that matters is unknown, or the counts disagree."""
        counts = _totals(usage, has_output=self.output is not None)
        if counts is None:
            return None
        parts = self._input_parts(counts[0], usage)
        if parts is None:
            return None
        audio, image = usage.audio_output_tokens or 0, usage.image_output_tokens or 0
        parts += (
            (counts[1] - audio - image, self.output),
            (audio, self.audio_output),
            (image, _first(self.image_output, self.output)),
        )
        if any(tokens < 0 or (tokens and rate is None) for tokens, rate in parts):
            return None
        with localcontext(EXACT):
            tokens_cost = sum([tokens * rate for tokens, rate in parts if tokens and rate is not None], _ZERO)
            return (tokens_cost.scaleb(_MILLION_EXPONENT) + (self.per_call or _ZERO)).normalize()

    def _input_parts(self, total: int, usage: Usage) -> tuple[tuple[int, Decimal | None], ...] | None:
        """Tokens and the rate for them; None if nobody knows how the parts overlap."""
        cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
        audio, image = usage.audio_input_tokens or 0, usage.image_input_tokens or 0
        cached_audio = _overlap(cached, audio, usage.cached_audio_tokens)
        cached_image = _overlap(cached, image, usage.cached_image_tokens)
        if cached_audio is None or cached_image is None or (written and (audio or image)):
            return None
        cached_text = cached - cached_audio - cached_image
        audio, image = audio - cached_audio, image - cached_image
        image_rate = _first(self.image_input, self.input)
        return (
            (total - cached - written - audio - image, self.input),
            (cached_text, _first(self.cached_input, self.input)),
            (written, _first(self.cache_write, self.input)),
            (audio, self.audio_input),
            (cached_audio, _first(self.cached_audio_input, self.audio_input)),
            (image, image_rate),
            (cached_image, _first(self.cached_image_input, image_rate)),
        )

    def times(self, factor: Decimal) -> Rates:
        """Return all rates multiplied by *factor*."""
        with localcontext(EXACT):
            return Rates(**{name: rate * factor for name in RATES if (rate := getattr(self, name)) is not None})


RATES: Final = tuple(rate.name for rate in fields(Rates))


def _first(rate: Decimal | None, substitute: Decimal | None) -> Decimal | None:
    return substitute if rate is None else rate


def _overlap(cached: int, part: int, known: int | None) -> int | None:
    return known if known is not None else None if cached and part else 0


def _totals(usage: Usage, *, has_output: bool) -> tuple[int, int] | None:
    """Input and output tokens; one of them may follow from the total."""
    inputs, outputs, total = usage.input_tokens, usage.output_tokens, usage.total_tokens
    if inputs is None and outputs is not None and total is not None:
        inputs = total - outputs
    if outputs is None and inputs is not None:
        # Embeddings have no output, and say so only by their total or by not having a rate for it.
        outputs = total - inputs if total is not None else None if has_output else 0
    return None if inputs is None or outputs is None or min(inputs, outputs) < 0 else (inputs, outputs)


@dataclass(frozen=True, slots=True)
class _Model:
    standard: Rates
    tiers: Mapping[str, Rates]


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Your own prices, as a price source.

    A model is looked up by its full name as the response gives it, then as the request did: no prefixes, no guesses.
    A call served in a tier that the model has no price for has no price.

    Args:
        models: Name of the model to its rates: a :class:`Rates` or a mapping of rates, see there. The mapping may have
            ``tiers``: the name of a service tier (``flex``, ``priority``, ``batch``, …) to a factor for all rates, or
            to the rates that differ.
        version: What these prices are, such as the date you looked them up.

    Raises:
        ValueError: A rate does not exist or is no number from 0 on; the message names the model and what is allowed.

    Example:
        >>> table = PriceTable({"my-model": {"input": "0.50", "output": "1.50", "tiers": {"batch": "0.5"}}})
    """

    models: Mapping[str, Mapping[str, Any] | Rates]
    version: str = ""
    _known: Mapping[str, _Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.models, Mapping) or not all(isinstance(name, str) for name in self.models):
            raise ValueError("the models of a price table must be a mapping of names to rates")
        if isinstance(self.version, date):
            object.__setattr__(self, "version", self.version.isoformat())
        object.__setattr__(self, "_known", {name: _read_model(name, given) for name, given in self.models.items()})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a JSON file: ``{"version": "…", "models": {"…": {"input": "0.50", …}}}``.

        Raises:
            ValueError: It cannot be read or is not of that form; the message says what is wrong where.
        """
        name = os.fspath(path)
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - any path the caller has
                content = json.load(file, parse_float=Decimal)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} cannot be read as JSON: {type(error).__name__}") from error
        if not isinstance(content, dict) or "models" not in content or not set(content) <= {"models", "version"}:
            raise ValueError(f"{name} must be an object with models and, if you like, version, and nothing else")
        try:
            return cls(content["models"], version=str(content.get("version", "")))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def __call__(self, metadata: ResponseMetadata) -> Decimal | None:
        """Return what the call cost, None if this table cannot tell."""
        model = self._known.get(metadata.model or "") or self._known.get(metadata.request.model or "")
        if model is None or metadata.usage is None:
            return None
        tier = _tier(metadata)
        rates = model.tiers.get(tier or "default")
        if rates is None:
            rates = model.standard if tier is None else None
        return None if rates is None else rates.cost(metadata.usage)


def _tier(metadata: ResponseMetadata) -> str | None:
    """The tier the call was served in; None for the standard one."""
    tier = (metadata.service_tier or metadata.request.service_tier or "").strip().lower()
    return None if not tier or tier in _STANDARD_TIERS else tier


def _read_model(name: str, given: Mapping[str, Any] | Rates) -> _Model:
    if isinstance(given, Rates):
        return _Model(given, {})
    if not isinstance(given, Mapping):
        raise ValueError(f"{name!r} has no rates; the rates are {', '.join(RATES)}")  # noqa: TRY004 - as for any value
    rates = _rates_in({key: value for key, value in given.items() if key != "tiers"}, repr(name))
    if not rates:
        raise ValueError(f"{name!r} has no rates; the rates are {', '.join(RATES)}")
    standard = Rates(**rates)
    tiers = given.get("tiers") or {}
    if not isinstance(tiers, Mapping):
        raise ValueError(f"{name!r}: tiers must be a mapping of tiers to factors or rates")  # noqa: TRY004
    return _Model(
        standard, {str(tier).lower(): _read_tier(standard, own, f"{name!r}: {tier}") for tier, own in tiers.items()}
    )


def _read_tier(standard: Rates, given: object, what: str) -> Rates:
    if isinstance(given, Mapping):
        return replace(standard, **_rates_in(given, what))
    return standard.times(amount(given, f"{what}: the factor"))


# --- The library ------------------------------------------------------------------------------------------------------

_EXTRA: Final = "genai-prices is not installed; pip install 'otel-llm-callback[cost]'"

# ``gen_ai.provider.name`` to the library's id; a provider that is not here has no price.
_PROVIDERS: Final = {
    "anthropic": "anthropic",
    "aws.bedrock": "aws",
    "azure.ai.inference": "azure",
    "azure.ai.openai": "azure",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "groq": "groq",
    "mistral_ai": "mistral",
    "moonshot_ai": "moonshotai",
    "openai": "openai",
    "perplexity": "perplexity",
    "x_ai": "x-ai",
}
# Providers the convention has no name for, under the library's id: a user's own table of hosts may say these.
_SAME: Final = ("cerebras", "cloudflare", "fireworks", "novita", "openrouter", "together")

# The library's name of a price to ours.
_LIBRARY_RATES: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "output_mtok": "output",
    "input_audio_mtok": "audio_input",
    "cache_audio_read_mtok": "cached_audio_input",
    "output_audio_mtok": "audio_output",
    "input_image_mtok": "image_input",
    "cache_image_read_mtok": "cached_image_input",
    "output_image_mtok": "image_output",
}
# Prices for what no token count shows: tools the server ran, a longer life in the cache, video that is not told apart.
_LEFT_OUT: Final = frozenset(
    ("cache_write_1h_mtok", "input_video_mtok", "output_video_mtok", "storage_searches_kcount", "web_searches_kcount")
)
_PER_CALL: Final = "requests_kcount"  # dollars for a thousand calls

_REMEMBERED: Final = 1024
_NS_PER_MINUTE: Final = 60_000_000_000


class LibraryPrices:
    """The prices of the ``genai-prices`` package (extra ``cost``), as a price source; they are as old as that release.

    Prices are those in force when the call began. Looked up is the model that answered at the provider of the call,
    else the model as requested; a provider the library does not have, or a tier it has no price for, has no price. The
    library is asked once a minute for each model and tier, in memory; it does not use the network unless the program
    starts its updater.

    Raises:
        ImportError: ``genai-prices`` is not installed.
    """

    def __init__(self) -> None:
        try:
            import genai_prices
        except ImportError as error:
            raise ImportError(_EXTRA) from error
        self.version = f"genai-prices {genai_prices.__version__}"
        self._look_up = genai_prices.calc_price
        self._nothing = genai_prices.Usage()
        self._known: dict[tuple[str, str, str | None, int], Any] = {}
        self._price("openai", "gpt-4o", None, 0)  # loads what is slow to load now, not on the first call

    def __call__(self, metadata: ResponseMetadata) -> Decimal | None:
        """Return what the call cost, None if the library cannot tell."""
        usage, request = metadata.usage, metadata.request
        provider = _PROVIDERS.get(request.provider) or (request.provider if request.provider in _SAME else None)
        if usage is None or provider is None:
            return None
        for model in dict.fromkeys((metadata.model, request.model)):
            price = None if model is None else self._price(provider, model, _tier(metadata), request.started_ns)
            if price is not None:
                rates = _library_rates(price, usage.input_tokens)
                return None if rates is None else rates.cost(usage)
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LibraryPrices)

    def __hash__(self) -> int:
        return hash(LibraryPrices)

    def __repr__(self) -> str:
        return f"<LibraryPrices of {self.version}>"

    def _price(self, provider: str, model: str, tier: str | None, started_ns: int) -> Any:
        """The library's price of a model, None if it has none; remembered for a minute, as prices may change."""
        key = (provider, model, tier, started_ns // _NS_PER_MINUTE)
        try:
            return self._known[key]
        except KeyError:
            pass
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        found = self._known[key] = self._find(provider, model, tier, started_ns)
        return found

    def _find(self, provider: str, model: str, tier: str | None, started_ns: int) -> Any:
        at = datetime.fromtimestamp(started_ns / 1e9, tz=timezone.utc)
        try:
            found = self._ask(provider, model, at)
            if tier is not None:
                wanted = {"processing": "batch"} if tier == "batch" else {"service_tier": tier}
                # Asked first: for a tier it has no price for, the library takes the standard one, some releases aloud.
                found = self._ask(provider, model, at, wanted) if _has_variant(found, wanted, at) else None
        except (LookupError, ValueError):  # unknown, or prices that the library itself finds inconsistent
            return None
        return None if found is None else found.model_price

    def _ask(self, provider: str, model: str, at: datetime, context: Mapping[str, str] | None = None) -> Any:
        return self._look_up(
            self._nothing, model, provider_id=provider, genai_request_timestamp=at, price_context=context
        )


def _has_variant(found: Any, wanted: Mapping[str, str], at: datetime) -> bool:
    """True if the library has a price of its own for *wanted*."""
    own = any(model is found.model for model in found.provider.models)
    return own and any(
        variant.when == wanted and (variant.constraint is None or variant.constraint.active(at))
        for variant in found.model.price_variants or ()
    )


def _library_rates(price: Any, input_tokens: int | None) -> Rates | None:
    """The library's price in our terms; None if it has a part that our counts do not show."""
    rates: dict[str, Decimal] = {}
    for name, value in vars(price).items():
        if value is None or name in _LEFT_OUT:
            continue
        if name == _PER_CALL:
            rates["per_call"] = EXACT.scaleb(value, -3)
        elif (ours := _LIBRARY_RATES.get(name)) is not None:
            rate = value if isinstance(value, Decimal) else _in_band(value, input_tokens)
            if rate is None:
                return None
            rates[ours] = rate
        else:
            return None
    return Rates(**rates) if rates else None


def _in_band(tiered: Any, input_tokens: int | None) -> Decimal | None:
    """The rate that all tokens of a call with so much input have."""
    if input_tokens is None:
        return None
    rate: Decimal = tiered.base
    for band in tiered.tiers:
        if input_tokens > band.start:
            rate = band.price
    return rate


# --- Several, and by name ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PriceChain:
    """Several price sources as one: the first that can tell."""

    sources: tuple[PriceSource, ...]

    def __call__(self, metadata: ResponseMetadata) -> Decimal | None:
        """Return the first cost that is not None."""
        for source in self.sources:
            if (cost := source(metadata)) is not None:
                return cost
        return None


def price_source(given: object, load: Callable[[str], object] | None = None) -> PriceSource | None:
    """Return the price source that *given* stands for, None for None.

    Args:
        given: A function, ``library``, the path of a JSON file, or several of them in the order of preference.
        load: Returns what ``module:object`` names.

    Raises:
        ImportError: ``library`` is asked for and not installed.
        ValueError: It stands for none, or the file is not as it should be.
    """
    if given is None or given == "":
        return None
    if isinstance(given, str):
        return _named_source(given.strip(), load)
    if callable(given):
        return given
    if isinstance(given, Iterable) and not isinstance(given, (bytes, Mapping)):
        sources = [source for one in given if (source := price_source(one, load)) is not None]
        if sources:
            return sources[0] if len(sources) == 1 else PriceChain(tuple(sources))
    raise ValueError("no price source")


def _named_source(name: str, load: Callable[[str], object] | None) -> PriceSource:
    if name.lower() == "library":
        return LibraryPrices()
    if name.lower().endswith(".json"):
        return PriceTable.from_file(name)
    found = load(name) if load is not None and ":" in name else None
    if not callable(found):
        raise ValueError(f"{name!r} is no price source")  # noqa: TRY004 - settings are wrong by ValueError
    return found


def cost_of(source: PriceSource, metadata: ResponseMetadata) -> Decimal | None:
    """Return what *source* says the call cost.

    Raises:
        TypeError: It says something that is no amount of money.
        Exception: Whatever the source raises.
    """
    cost = source(metadata)
    if cost is None or (isinstance(cost, Decimal) and cost.is_finite() and cost >= 0):
        return cost
    raise TypeError(f"a price source returned {type(cost).__name__}, not a Decimal from 0 on")
