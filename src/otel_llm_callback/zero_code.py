"""What ``opentelemetry-instrument`` calls before it instruments."""

from __future__ import annotations

import os
from typing import Final

from .config import PREFIX, load_settings, logger
from .sdk import configure

_CONFIGURE: Final = PREFIX + "CONFIGURE"
_DISABLED: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"


def ensure_sdk() -> None:
    """Set the SDK up if no distribution did, so that the package and its ``otlp`` extra are enough.

    Where a distribution or vendor configures the SDK this does nothing, as it does with
    ``OTEL_LLM_CALLBACK_CONFIGURE=false`` and where ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` names this package.
    """
    try:
        if _is_wanted() and configure():
            logger.debug("set the SDK up, as nothing else did")
    except ImportError as error:
        logger.debug("the SDK is not set up: %s", error)
    except Exception as error:  # noqa: BLE001 - one that leaves here keeps every other package from being instrumented
        logger.error("the SDK is not set up: %s", error)


def _is_wanted() -> bool:
    disabled = {name.strip() for name in os.environ.get(_DISABLED, "").split(",")}
    if disabled & {"otel_llm_callback", "*"}:
        return False
    try:
        # The one variable only: what is wrong with our settings is for the instrumentor to say, once.
        return load_settings(environment={_CONFIGURE: os.environ.get(_CONFIGURE, "")}).configure
    except ValueError:
        return False
