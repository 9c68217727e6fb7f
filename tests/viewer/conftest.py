"""Viewers for the tests of this directory."""

from __future__ import annotations

import pytest
from viewer._serving import serving

from otel_llm_callback.viewer import Options


@pytest.fixture
def viewer(tmp_path):
    """A viewer with a store on disk."""
    with serving(Options(port=0, store=tmp_path / "view.db")) as client:
        yield client
