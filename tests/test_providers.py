"""Who is behind a client: its class or provider object, else the host of its base URL, else ``openai``."""

from __future__ import annotations

from importlib.util import find_spec

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_callback import instrument
from otel_llm_callback._providers import provider_of

HOSTS = {
    "https://api.openai.com/v1": "openai",
    "https://eu.api.openai.com/v1": "openai",
    "https://mine.openai.azure.com/openai/v1": "azure.ai.openai",
    "https://mine.cognitiveservices.azure.com/openai/v1": "azure.ai.openai",
    "https://mine.services.ai.azure.com/openai/v1": "azure.ai.openai",
    "https://mine.services.ai.azure.com/models": "azure.ai.inference",
    "https://mine.inference.ai.azure.com": "azure.ai.inference",
    "https://bedrock-mantle.us-east-1.api.aws/v1": "aws.bedrock",
    "https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1": "aws.bedrock",
    "https://api.groq.com/openai/v1": "groq",
    "https://api.deepseek.com": "deepseek",
    "https://api.mistral.ai/v1": "mistral_ai",
    "https://generativelanguage.googleapis.com/v1beta/openai/": "gcp.gemini",
    "https://aiplatform.googleapis.com/v1": "gcp.vertex_ai",
    "https://europe-west4-aiplatform.googleapis.com/v1": "gcp.vertex_ai",
    "https://api.x.ai/v1": "x_ai",
    "https://api.perplexity.ai": "perplexity",
    "https://api.moonshot.cn/v1": "moonshot_ai",
    "https://api.cohere.ai/compatibility/v1": "cohere",
    "https://us-south.ml.cloud.ibm.com/v1": "ibm.watsonx.ai",
    "https://api.anthropic.com/v1/": "anthropic",
    # What is not in the conventions' list is named after the client library: gateways, and servers of one's own.
    "https://openrouter.ai/api/v1": "openai",
    "http://localhost:11434/v1": "openai",  # Ollama
    "http://localhost:8000/v1": "openai",  # vLLM
    "http://127.0.0.1:8080/v1": "openai",  # llama.cpp
    "https://llm.example.com/v1": "openai",
    "https://api.openai.com.example.com/v1": "openai",
    "https://notapi.groq.com.example.com/v1": "openai",
}
OWN = {"llm.example.com": "house", "openrouter.ai": "openrouter", "localhost": "ollama", "api.openai.com": "proxy"}
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


def provider_told(recorder, client):
    """Of a call that goes nowhere."""
    with client, pytest.raises(openai.OpenAIError):
        client.chat.completions.create(model="m", messages=[])
    return recorder.requests[-1].provider


@pytest.fixture
def nowhere(monkeypatch):
    """Nothing leaves this machine: every connection is refused before a name is looked up."""

    def refuse(self, *args, **kwargs):
        raise openai.APIConnectionError(message="refused here", request=None)

    for kind in (openai.OpenAI, openai.AzureOpenAI, getattr(openai, "BedrockOpenAI", openai.OpenAI)):
        monkeypatch.setattr(kind, "_prepare_options", refuse)


@pytest.mark.parametrize("url", HOSTS)
def test_provider_is_told_from_the_base_url(nowhere, recorder, url):
    instrument(recorder, delivery="inline", telemetry=False)
    client = openai.OpenAI(api_key="k", base_url=url, max_retries=0)
    assert provider_told(recorder, client) == HOSTS[url]


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://llm.example.com/v1", "house"),
        ("https://eu.llm.example.com/v1", "house"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("http://localhost:11434/v1", "ollama"),
        ("https://api.openai.com/v1", "proxy"),
        ("https://example.com/v1", "openai"),
    ],
)
def test_own_table_wins(nowhere, recorder, url, provider):
    """Its hosts stand for their subdomains too."""
    instrument(recorder, delivery="inline", telemetry=False, providers=OWN)
    assert provider_told(recorder, openai.OpenAI(api_key="k", base_url=url, max_retries=0)) == provider


def test_azure_is_azure_wherever_it_is(nowhere, recorder):
    """By its class; a host says nothing against it."""
    instrument(recorder, delivery="inline", telemetry=False)
    client = openai.AzureOpenAI(
        api_key="k", azure_endpoint="https://gateway.example.com", api_version="2024-10-21", max_retries=0
    )
    assert provider_told(recorder, client) == "azure.ai.openai"


@pytest.mark.skipif(not hasattr(openai, "BedrockOpenAI"), reason="this openai has no client for Bedrock")
def test_bedrock_is_bedrock_wherever_it_is(nowhere, recorder):
    """By its class."""
    instrument(recorder, delivery="inline", telemetry=False)
    client = openai.BedrockOpenAI(
        api_key="k", aws_region="us-east-1", base_url="https://gateway.example.com/v1", max_retries=0
    )
    assert provider_told(recorder, client) == "aws.bedrock"


@pytest.mark.skipif(find_spec("openai.providers") is None, reason="this openai has no provider objects")
def test_provider_object_is_asked(nowhere, recorder):
    """The client is a plain one; the object it was made with says who is there."""
    from openai.providers import bedrock

    instrument(recorder, delivery="inline", telemetry=False)
    provider = bedrock(region="us-east-1", base_url="https://gateway.example.com/v1", api_key="k")
    assert provider_told(recorder, openai.OpenAI(provider=provider, max_retries=0)) == "aws.bedrock"


@given(st.lists(NAMES, min_size=1, max_size=3), NAMES)
def test_a_domain_stands_for_what_is_below_it_and_nothing_else(below, name):
    """However deep; a name that only ends alike is another one."""
    table = {"example.com": "mine"}
    host = ".".join([*below, "example.com"])
    assert provider_of(openai.OpenAI, None, host, "/", table) == "mine"
    assert provider_of(openai.OpenAI, None, f"{name}example.com", "/", table) == "openai"
