"""Name the provider behind a client: the class first, then the host.

Source: GenAI conventions sheet, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEFAULT: Final = "openai"

_RUNTIMES: Final = {"bedrock": "aws.bedrock", "azure": "azure.ai.openai", "vertex": "gcp.vertex_ai", "openai": DEFAULT}

_CLASSES: Final = {
    "AzureOpenAI": "azure.ai.openai",
    "AsyncAzureOpenAI": "azure.ai.openai",
    "BedrockOpenAI": "aws.bedrock",
    "AsyncBedrockOpenAI": "aws.bedrock",
}

# Matched against the host and each of its parent domains.
_HOSTS: Final = {
    "openai.azure.com": "azure.ai.openai",
    "cognitiveservices.azure.com": "azure.ai.openai",
    "inference.ai.azure.com": "azure.ai.inference",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.anthropic.com": "anthropic",
    "api.x.ai": "x_ai",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "ml.cloud.ibm.com": "ibm.watsonx.ai",
}


def provider_of(client_class: type, runtime: object, host: str, path: str, hosts: Mapping[str, str]) -> str:
    """Return ``gen_ai.provider.name``.

    Args:
        client_class: Class of the client.
        runtime: Name of the provider object the client was made with, None if there is none.
        host: Host of its base URL.
        path: Path of its base URL.
        hosts: The user's own table, host or parent domain to provider; it wins.
    """
    own = _by_domain(host, hosts)
    return own or _by_client(client_class, runtime) or _by_host(host, path) or DEFAULT


def _by_client(client_class: type, runtime: object) -> str | None:
    if isinstance(runtime, str) and runtime in _RUNTIMES:
        return _RUNTIMES[runtime]
    return next((_CLASSES[base.__name__] for base in client_class.__mro__ if base.__name__ in _CLASSES), None)


def _by_host(host: str, path: str) -> str | None:
    if host.endswith(".services.ai.azure.com"):
        return "azure.ai.inference" if path.startswith("/models") else "azure.ai.openai"
    if host.startswith(("bedrock-mantle.", "bedrock-runtime.")):
        return "aws.bedrock"
    if host.endswith("-aiplatform.googleapis.com"):
        return "gcp.vertex_ai"
    return _by_domain(host, _HOSTS)


def _by_domain(host: str, table: Mapping[str, str]) -> str | None:
    while host:
        if host in table:
            return table[host]
        host = host.partition(".")[2]
    return None
