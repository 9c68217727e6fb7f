"""The live view: an OTLP receiver, a bounded store and a page, for a machine that has nothing but Python.

It knows nothing of the client that is observed and needs no SDK: whatever sends OTLP over HTTP may use it. What belongs
here is receiving, keeping and showing; what makes spans is elsewhere.
"""

from ._options import DEFAULT_PORT, Limits, Options, OptionsError, default_store

__all__ = ["DEFAULT_PORT", "Limits", "Options", "OptionsError", "default_store"]
