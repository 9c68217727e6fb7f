"""Price sources: golden values worked out by hand, the algebra of costs, and what is refused.

In the golden tests rates are in US dollars per million tokens, so that each expected value can be read off the line.
"""

from __future__ import annotations

import decimal
import json
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_callback.prices import LibraryPrices, PriceChain, PriceTable, Rates, cost_of, price_source
from otel_llm_callback.testing import make_request, make_response
from otel_llm_callback.types import Usage

MILLION = Decimal(1_000_000)

CHAT = Rates(input="2.50", cached_input="1.25", cache_write="3.00", output="10")
AUDIO = Rates(
    input="4", cached_input="0.40", output="16", audio_input="32", cached_audio_input="0.80", audio_output="64"
)
IMAGE = Rates(input="5", cached_input="1.25", image_input="8", cached_image_input="2", output="10", image_output="32")
FREE = Rates(input=0, output=0)
EMBEDDING = Rates(input="0.02")


def usage(input_tokens=None, output_tokens=None, **parts):
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens, **parts)


# name: rates, usage, dollars times a million.
GOLDEN = {
    "plain": (CHAT, usage(1000, 200), Decimal(1000) * Decimal("2.50") + Decimal(200) * Decimal(10)),
    "cached": (CHAT, usage(1000, 200, cached_tokens=600), 400 * Decimal("2.50") + 600 * Decimal("1.25") + 200 * 10),
    "all cached": (CHAT, usage(1000, 0, cached_tokens=1000), 1000 * Decimal("1.25")),
    "cache write": (
        CHAT,
        usage(1000, 200, cached_tokens=300, cache_write_tokens=500),
        200 * Decimal("2.50") + 300 * Decimal("1.25") + 500 * Decimal("3.00") + 200 * 10,
    ),
    "cached without a rate of its own": (Rates(input="2", output="8"), usage(10, 1, cached_tokens=4), 10 * 2 + 8),
    "written without a rate of its own": (Rates(input="2", output="8"), usage(10, 1, cache_write_tokens=4), 10 * 2 + 8),
    "reasoning is output": (CHAT, usage(100, 900, reasoning_tokens=800), 100 * Decimal("2.50") + 900 * 10),
    "audio in": (AUDIO, usage(130, 20, audio_input_tokens=100, text_input_tokens=30), 30 * 4 + 100 * 32 + 20 * 16),
    "audio out": (AUDIO, usage(10, 120, audio_output_tokens=100, text_output_tokens=20), 10 * 4 + 100 * 64 + 20 * 16),
    "cached audio": (
        AUDIO,
        usage(150, 0, audio_input_tokens=100, cached_tokens=64, cached_audio_tokens=40),
        26 * 4 + 24 * Decimal("0.40") + 60 * 32 + 40 * Decimal("0.80"),
    ),
    "image in": (IMAGE, usage(250, 0, image_input_tokens=200, text_input_tokens=50), 50 * 5 + 200 * 8),
    "image out": (IMAGE, usage(10, 1100, image_output_tokens=1000), 10 * 5 + 100 * 10 + 1000 * 32),
    "cached image": (
        IMAGE,
        usage(250, 0, image_input_tokens=200, cached_tokens=100, cached_image_tokens=80),
        30 * 5 + 20 * Decimal("1.25") + 120 * 8 + 80 * 2,
    ),
    "picture shown to a chat model": (CHAT, usage(1000, 10, image_input_tokens=900), 1000 * Decimal("2.50") + 10 * 10),
    "embedding": (EMBEDDING, usage(7), 7 * Decimal("0.02")),
    "embedding with its total": (EMBEDDING, usage(7, total_tokens=7), 7 * Decimal("0.02")),
    "output that follows from the total": (CHAT, usage(10, total_tokens=15), 10 * Decimal("2.50") + 5 * 10),
    "input that follows from the total": (CHAT, usage(None, 5, total_tokens=15), 10 * Decimal("2.50") + 5 * 10),
    "zero-priced model": (FREE, usage(1000, 200), Decimal(0)),
    "nothing used": (CHAT, usage(0, 0), Decimal(0)),
    "per call": (Rates(input="1", output="1", per_call="0.005"), usage(10, 5), 15 + Decimal("0.005") * MILLION),
    "one token of the cheapest": (Rates(input="0.0001", output=0), usage(1, 0), Decimal("0.0001")),
}

UNKNOWN = {
    "no output count": (CHAT, usage(1000)),
    "no input count": (CHAT, usage(None, 200)),
    "nothing but a total": (CHAT, usage(total_tokens=15)),
    "output without a rate": (EMBEDDING, usage(7, 1)),
    "input without a rate": (Rates(output="1"), usage(7, 1)),
    "audio without a rate": (CHAT, usage(100, 10, audio_input_tokens=90)),
    "audio answer without a rate": (CHAT, usage(100, 10, audio_output_tokens=9)),
    "cached and audio, and nobody knows how they overlap": (
        AUDIO,
        usage(150, 0, audio_input_tokens=100, cached_tokens=64),
    ),
    "written and audio": (AUDIO, usage(150, 0, audio_input_tokens=100, cache_write_tokens=64)),
    "more cached than there is": (CHAT, usage(100, 0, cached_tokens=101)),
    "more audio than there is": (AUDIO, usage(10, 5, audio_output_tokens=6)),
    "more cached audio than cached": (
        AUDIO,
        usage(150, 0, audio_input_tokens=100, cached_tokens=10, cached_audio_tokens=11),
    ),
    "a total below its part": (CHAT, usage(10, total_tokens=9)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    rates, used, millionths = GOLDEN[name]
    assert rates.cost(used) == millionths / MILLION


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_needed_and_unknown_leaves_no_price(name):
    """A guess would look like a price."""
    rates, used = UNKNOWN[name]
    assert rates.cost(used) is None


def test_every_rate_is_in_a_golden_value():
    """A rate that no test charges might as well not be there."""
    used = {field.name for field in fields(Rates) for rates, _, _ in GOLDEN.values() if getattr(rates, field.name)}
    assert used == {field.name for field in fields(Rates)}


# --- The algebra ------------------------------------------------------------------------------------------------------

tokens = st.integers(0, 10**9)
amounts = st.decimals(0, 1000, places=6)
some_rates = st.builds(Rates, **{field.name: amounts for field in fields(Rates) if field.name != "per_call"})


@st.composite
def usages(draw):
    """Counts that agree with one another, with every part and overlap."""
    text, cached_text, written, out_text, reasoning = [draw(tokens) for _ in range(5)]
    kinds = {}
    has_media = not written
    for kind in ("audio", "image"):
        plain, cached, made = [draw(tokens) if has_media else 0 for _ in range(3)]
        kinds[kind] = (plain, cached, made)
    cached = cached_text + sum(part[1] for part in kinds.values())
    media_in = sum(part[0] + part[1] for part in kinds.values())
    return Usage(
        input_tokens=text + cached_text + written + media_in,
        output_tokens=out_text + reasoning + sum(part[2] for part in kinds.values()),
        cached_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        audio_input_tokens=sum(kinds["audio"][:2]),
        audio_output_tokens=kinds["audio"][2],
        image_input_tokens=sum(kinds["image"][:2]),
        image_output_tokens=kinds["image"][2],
        cached_audio_tokens=kinds["audio"][1],
        cached_image_tokens=kinds["image"][1],
    )


def times(used, factor):
    return Usage(
        **{field.name: value * factor for field in fields(Usage) if (value := getattr(used, field.name)) is not None}
    )


@given(some_rates, usages())
def test_total_is_the_sum_of_its_parts(rates, used):
    """Each token is charged once, at the rate of what it is."""
    cached_text = used.cached_tokens - used.cached_audio_tokens - used.cached_image_tokens
    parts = [
        (used.cache_write_tokens, rates.cache_write),
        (cached_text, rates.cached_input),
        (used.cached_audio_tokens, rates.cached_audio_input),
        (used.cached_image_tokens, rates.cached_image_input),
        (used.audio_input_tokens - used.cached_audio_tokens, rates.audio_input),
        (used.image_input_tokens - used.cached_image_tokens, rates.image_input),
    ]
    parts.append((used.input_tokens - sum(count for count, _ in parts), rates.input))
    out = [(used.audio_output_tokens, rates.audio_output), (used.image_output_tokens, rates.image_output)]
    out.append((used.output_tokens - sum(count for count, _ in out), rates.output))
    with decimal.localcontext() as context:
        context.prec = 60
        assert rates.cost(used) == sum(count * rate for count, rate in parts + out) / MILLION


@given(some_rates, usages(), st.integers(0, 1000))
def test_price_is_linear_in_tokens(rates, used, factor):
    with decimal.localcontext() as context:
        context.prec = 60
        assert rates.cost(times(used, factor)) == rates.cost(used) * factor


@given(some_rates, usages(), amounts)
def test_a_factor_for_the_rates_is_a_factor_for_the_cost(rates, used, factor):
    with decimal.localcontext() as context:
        context.prec = 60
        assert rates.times(factor).cost(used) == rates.cost(used) * factor


counts = st.none() | st.integers(0, 10**12)


@given(
    st.builds(Rates, **{field.name: st.none() | amounts for field in fields(Rates)}),
    st.builds(Usage, **{field.name: counts for field in fields(Usage)}),
)
def test_a_price_is_never_negative_and_never_a_failure(rates, used):
    """Whatever a server reports, in whatever combination."""
    cost = rates.cost(used)
    assert cost is None or (cost.is_finite() and cost >= 0)


def test_precision_and_traps_of_the_program_change_nothing():
    """A program that does its own sums with four digits still gets exact costs."""
    with decimal.localcontext(decimal.Context(prec=4, traps=[decimal.Inexact, decimal.Rounded])):
        assert CHAT.cost(usage(123_457, 9)) == Decimal("0.3087325")


# --- The user's own table ---------------------------------------------------------------------------------------------

TABLE = PriceTable(
    {
        "m": {"input": "2", "output": "8", "tiers": {"flex": "0.5", "priority": {"output": "16"}, "batch": "0.25"}},
        "m-2026-01-01": {"input": "3", "output": "9"},
        "free": {"input": 0, "output": 0},
        "given": CHAT,
    },
    version="2026-11-01",
)


def told(model="m", answered=None, tier=None, asked_tier=None, used=None):
    request = make_request(model=model, service_tier=asked_tier)
    used = used or usage(1000, 100)
    return make_response(request=request, model=answered, service_tier=tier, usage=used)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (told("m"), "0.0028"),  # 1000 x 2 + 100 x 8
        (told("m", "m-2026-01-01"), "0.0039"),  # what answered, by its own name: 1000 x 3 + 100 x 9
        (told("m", "m-2026-05-05"), "0.0028"),  # a release without a price of its own, asked for as m
        (told("my-deployment", "m"), "0.0028"),
        (told("free"), "0"),
        (told("given"), "0.0035"),
        (told("m", tier="default", asked_tier="flex"), "0.0028"),  # served in another tier than asked for
        (told("m", tier="flex"), "0.0014"),
        (told("m", asked_tier="flex"), "0.0014"),  # the response does not say
        (told("m", asked_tier="auto"), "0.0028"),
        (told("m", tier="on_demand"), "0.0028"),
        (told("m", tier="priority"), "0.0036"),  # 1000 x 2 + 100 x 16
        (told("m", tier="batch"), "0.0007"),
        (told("m", tier="scale"), None),
        (told("m-2026-01-01", tier="flex"), None),
        (told("unknown"), None),
        (told("M"), None),
        (told(None), None),
    ],
)
def test_table_prices_the_model_that_answered_in_the_tier_that_served(metadata, expected):
    assert TABLE(metadata) == (None if expected is None else Decimal(expected))


def test_table_without_usage_has_no_price():
    assert TABLE(make_response(request=make_request(model="m"), usage=None)) is None


def test_table_is_read_from_a_file_exactly(tmp_path):
    """Numbers are taken as they are written, with or without quotes."""
    path = tmp_path / "prices.json"
    path.write_text(
        '{"version": "2026-11-01", "models": {"m": {"input": 0.1, "output": "0.30", "tiers": {"flex": 0.5}}}}'
    )
    table = PriceTable.from_file(path)
    assert table == PriceTable.from_file(str(path))
    assert table.version == "2026-11-01"
    assert table(told("m", used=usage(3, 0))) == Decimal("0.0000003")  # 0.1 + 0.1 + 0.1 millionths, no more


def test_floats_mean_what_they_print_as():
    assert Rates(input=0.1, output=0.30).cost(usage(3, 1)) == Decimal("0.0000006")


def test_table_survives_pickling():
    """So that a worker process can be given one."""
    copy = pickle.loads(pickle.dumps(TABLE))
    assert (copy, copy(told("m", tier="flex"))) == (TABLE, Decimal("0.0014"))


def test_version_may_be_a_date():
    assert PriceTable({"m": CHAT}, version=date(2026, 11, 1)).version == "2026-11-01"


ALLOWED = (
    "input, cached_input, cache_write, output, audio_input, cached_audio_input, audio_output, image_input, "
    "cached_image_input, image_output, per_call"
)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"m": {"inptu": 1}}, f"'m' has the unknown rate inptu; the rates are {ALLOWED}"),
        ({"m": {"reasoning": 1}}, f"'m' has the unknown rate reasoning; the rates are {ALLOWED}"),
        ({"m": {}}, f"'m' has no rates; the rates are {ALLOWED}"),
        ({"m": 3}, f"'m' has no rates; the rates are {ALLOWED}"),
        ({"m": {"input": -1}}, "'m': input is -1; it must be a number that is not negative"),
        ({"m": {"input": "cheap"}}, "'m': input is 'cheap'; it must be a number that is not negative"),
        ({"m": {"input": float("nan")}}, "'m': input is nan; it must be a number that is not negative"),
        ({"m": {"input": "Infinity"}}, "'m': input is 'Infinity'; it must be a number that is not negative"),
        ({"m": {"input": True}}, "'m': input is True; it must be a number that is not negative"),
        ({"m": {"input": 1, "tiers": 2}}, "'m': tiers must be a mapping of tiers to factors or rates"),
        (
            {"m": {"input": 1, "tiers": {"flex": "half"}}},
            "'m': flex: the factor is 'half'; it must be a number that is not negative",
        ),
        (
            {"m": {"input": 1, "tiers": {"flex": {"in": 1}}}},
            f"'m': flex has the unknown rate in; the rates are {ALLOWED}",
        ),
        ([], "the models of a price table must be a mapping of names to rates"),
        ({1: {}}, "the models of a price table must be a mapping of names to rates"),
    ],
)
def test_a_wrong_table_is_refused_with_what_is_allowed(models, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PriceTable(models)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON: JSONDecodeError"),
        (None, "cannot be read as JSON: FileNotFoundError"),
        ("[]", "must be an object with models and, if you like, version, and nothing else"),
        ('{"models": {}, "modles": {}}', "must be an object with models and, if you like, version, and nothing else"),
        ('{"version": "1"}', "must be an object with models and, if you like, version, and nothing else"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "prices.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=re.escape("prices.json")) as raised:
        PriceTable.from_file(path)
    assert str(raised.value) == f"{path} {message}"


def test_a_wrong_rate_in_a_file_names_file_model_and_rate(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"models": {"m": {"output": -2}}}))
    with pytest.raises(ValueError, match="m") as raised:
        PriceTable.from_file(path)
    assert str(raised.value) == f"{path}: 'm': output is -2; it must be a number that is not negative"


DOCS = Path(__file__).parent.parent / "docs" / "cost.md"


def test_the_documented_table_is_one_and_every_rate_is_documented(tmp_path):
    text = DOCS.read_text(encoding="utf-8")
    path = tmp_path / "prices.json"
    path.write_text(text.partition("```json\n")[2].partition("```")[0])
    table = PriceTable.from_file(path)
    assert table(told("my-own-server")) == 0
    assert table(told("my-model", tier="priority")) == Decimal("0.00104")  # 1000 x 0.80 + 100 x 2.40
    rows = text.partition("| Rate |")[2].partition("\n\n")[0]
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ([^|]+) \|", rows, re.MULTILINE)))
    assert {*documented, "per_call"} == {field.name for field in fields(Rates)}


# --- The library ------------------------------------------------------------------------------------------------------

AT = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def library():
    return LibraryPrices()


def library_told(model, used, *, provider="openai", tier=None, answered=None):
    request = make_request(model=model, provider=provider, started_ns=int(AT.timestamp() * 10**9))
    return make_response(request=request, model=answered, usage=used, service_tier=tier)


PARITY = [
    ("openai", "gpt-4o", None, usage(1000, 200)),
    ("openai", "gpt-4o", None, usage(1000, 200, cached_tokens=600)),
    ("openai", "gpt-4o-2024-08-06", None, usage(1000, 200, cached_tokens=600)),
    ("openai", "o3", None, usage(1000, 900, reasoning_tokens=800, cached_tokens=10)),
    ("openai", "gpt-5", None, usage(100_000, 10_000, cached_tokens=50_000)),
    ("openai", "gpt-audio", None, usage(1000, 500, audio_input_tokens=900, audio_output_tokens=400)),
    (
        "openai",
        "gpt-realtime",
        None,
        usage(1000, 10, audio_input_tokens=700, cached_tokens=500, cached_audio_tokens=300, cached_image_tokens=0),
    ),
    ("openai", "gpt-image-1.5", None, usage(300, 4000, image_input_tokens=200, image_output_tokens=4000)),
    ("openai", "text-embedding-3-small", None, usage(12)),
    ("azure.ai.openai", "gpt-4o", None, usage(1000, 200, cached_tokens=600)),
    ("anthropic", "claude-sonnet-4-20250514", None, usage(5000, 200, cached_tokens=1000, cache_write_tokens=3000)),
    ("gcp.gemini", "gemini-2.5-pro", None, usage(199_999, 100)),
    ("gcp.gemini", "gemini-2.5-pro", None, usage(300_000, 100)),  # beyond 200,000 all tokens cost more
    ("groq", "llama-3.3-70b-versatile", None, usage(1000, 200)),
    ("deepseek", "deepseek-chat", None, usage(1000, 200, cached_tokens=64)),
    ("perplexity", "sonar", None, usage(1000, 200)),  # and a fee for each request
]
VARIANTS = [
    ("openai", "o3", "default", usage(1000, 200, cached_tokens=600)),
    ("openai", "o3", "flex", usage(1000, 200, cached_tokens=600)),
    ("openai", "gpt-4o", "priority", usage(1000, 200)),
    ("openai", "gpt-4o", "batch", usage(1000, 200)),
]

LIBRARY_IDS = {"azure.ai.openai": "azure", "gcp.gemini": "google"}
LIBRARY_NAMES = {
    "cached_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "audio_input_tokens": "input_audio_tokens",
    "audio_output_tokens": "output_audio_tokens",
    "image_input_tokens": "input_image_tokens",
    "image_output_tokens": "output_image_tokens",
    "cached_audio_tokens": "cache_audio_read_tokens",
    "cached_image_tokens": "cache_image_read_tokens",
}


@pytest.mark.parametrize(("provider", "model", "tier", "used"), PARITY + VARIANTS)
def test_library_prices_are_those_the_library_calculates(library, provider, model, tier, used):
    """We do its sums ourselves, because ours are quicker and say when they cannot tell; where it can they are equal."""
    import genai_prices

    known = {theirs: getattr(used, ours) for ours, theirs in LIBRARY_NAMES.items() if getattr(used, ours) is not None}
    context = None if tier is None else {"processing": "batch"} if tier == "batch" else {"service_tier": tier}
    theirs = genai_prices.calc_price(
        genai_prices.Usage(**known),
        model,
        provider_id=LIBRARY_IDS.get(provider, provider),
        genai_request_timestamp=AT,
        price_context=context,
    )
    ours = library(library_told(model, used, provider=provider, tier=tier))
    assert ours == theirs.total_price
    assert ours > 0


@pytest.mark.parametrize("tier", ["flex", "priority", "batch"])
def test_library_tiers_differ_from_the_standard(library, tier):
    """The context that selects them is not lost on the way."""
    used = usage(1000, 200)
    assert library(library_told("o3", used, tier=tier)) != library(library_told("o3", used))


@pytest.mark.parametrize(
    "metadata",
    [
        library_told("no-such-model", usage(10, 5)),
        library_told(None, usage(10, 5)),
        library_told("gpt-4o", usage(10, 5), provider="my-gateway"),  # not looked up by the model's name alone
        library_told("llama3", usage(10, 5), provider="ollama"),
        library_told("gpt-4o", usage(10, 5), tier="scale"),
        library_told("gpt-4o", usage(10, 5), tier="flex"),  # no such tier for this model
        library_told("gpt-4o", usage(10, 5), tier="priority", provider="azure.ai.openai"),  # another provider's tier
        library_told("gpt-4o", usage(10)),
        library_told("gemini-2.5-pro", usage(None, 10), provider="gcp.gemini"),  # the rate depends on the input
        library_told("gpt-4o", None),
        library_told("gpt-4o-audio-preview", usage(100, 5, audio_input_tokens=90)),  # the library knows text rates only
        library_told("whisper-1", usage(10, 5)),  # priced by the hour
        library_told("omni-moderation-latest", usage(10, 5)),  # free, but not in so many words
        library_told("sonar-deep-research", usage(10, 5), provider="perplexity"),  # charges for what is not counted
    ],
    ids=lambda metadata: f"{metadata.request.provider}-{metadata.request.model}-{metadata.service_tier}",
)
def test_library_that_cannot_tell_says_none(library, metadata):
    """Where the library itself would say zero or take the standard price."""
    assert library(metadata) is None


def test_library_looks_up_the_model_that_answered_first(library):
    used = usage(1000, 0)
    assert library(library_told("my-deployment", used, answered="gpt-4o")) == library(library_told("gpt-4o", used))
    assert library(library_told("gpt-4o", used, answered="no-such-model")) == library(library_told("gpt-4o", used))


def test_library_remembers_a_bounded_number_of_models(library):
    """Model names may be the choice of the program's own users."""
    for number in range(3000):
        library(library_told(f"made-up-{number}", usage(1, 1)))
    assert len(library._known) <= 1024


def test_library_prices_are_equal_and_name_their_release(library):
    """Two of them are one and the same source; the release says how old the prices are."""
    import genai_prices

    assert {library, LibraryPrices()} == {library}
    assert repr(library) == f"<LibraryPrices of genai-prices {genai_prices.__version__}>"


def test_precision_of_the_program_does_not_round_what_the_library_says(library):
    metadata = library_told("sonar", usage(123_457, 9), provider="perplexity")
    exact = library(metadata)
    with decimal.localcontext(decimal.Context(prec=2, traps=[decimal.Inexact])):
        assert library(metadata) == exact


def test_library_uses_no_network():
    """With every socket refused, it prices all the same."""
    program = (
        "import socket\n"
        "def refuse(*_, **__): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from otel_llm_callback import LibraryPrices\n"
        "from otel_llm_callback.testing import make_request, make_response\n"
        "print(LibraryPrices()(make_response(request=make_request(model='gpt-4o'))) > 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_without_the_library_the_extra_is_named():
    """As an import error for who asks for it, and as a wrong setting for who sets it."""
    program = (
        "import sys; sys.modules['genai_prices'] = None\n"
        "from otel_llm_callback import LibraryPrices, instrument\n"
        "try: LibraryPrices()\n"
        "except ImportError as error: print(error)\n"
        "try: instrument(prices='library')\n"
        "except ValueError as error: print(str(error).rpartition('; genai')[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    said = "genai-prices is not installed; pip install 'otel-llm-callback[cost]'\n"
    assert (done.stdout, done.stderr) == (said + said.removeprefix("genai"), "")


# --- Several, and by name ---------------------------------------------------------------------------------------------


def test_the_first_source_that_can_tell_decides():
    chain = PriceChain((PriceTable({"m": {"input": 1, "output": 1}}), PriceTable({"m": FREE, "n": FREE})))
    assert [chain(told(model, used=usage(1, 1))) for model in ("m", "n", "o")] == [
        Decimal("0.000002"),
        Decimal(0),
        None,
    ]


def test_sources_by_name(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"models": {"m": {"input": 1}}}')
    table = PriceTable({"m": {"input": 1}})
    assert price_source(None) is None
    assert price_source([str(path), "library"]) == PriceChain((PriceTable.from_file(path), LibraryPrices()))
    assert price_source([table]) is table
    assert price_source("a:b", {"a:b": table}.get) is table


@pytest.mark.parametrize("given", [3, b"library", {}, [], "libary", "a:b", ["library", 3]])
def test_what_is_no_source_is_refused(given):
    with pytest.raises(ValueError, match=r"is no price source|^no price source$"):
        price_source(given)


@pytest.mark.parametrize("answer", [0.5, 1, "1", Decimal(-1), Decimal("NaN"), Decimal("Infinity"), True])
def test_a_source_that_returns_no_money_is_a_failure(answer):
    with pytest.raises(TypeError, match="not a Decimal from 0 on"):
        cost_of(lambda _: answer, make_response())


def test_usage_that_is_estimated_is_priced_and_says_so():
    """The cost is as good as the counts."""
    metadata = replace(told("m"), usage_source="estimated")
    assert (TABLE(metadata), metadata.usage_source) == (Decimal("0.0028"), "estimated")
