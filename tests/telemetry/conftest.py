"""What every telemetry test begins with."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context, attach, detach


@pytest.fixture(autouse=True)
def no_current_span():
    """Nothing that another test left behind is current."""
    token = attach(Context())
    yield
    detach(token)
