"""The stack without containers: real Collector, Jaeger and Prometheus, built from Go modules and run on loopback.

Run as ``make stack`` and ``make stack-down``; the tests start stacks of their own with it. Standard library only.
"""

from ._binaries import UnavailableError, obtain, read_versions
from ._processes import Ports, Stack, StackError, running, wait_until

__all__ = ["Ports", "Stack", "StackError", "UnavailableError", "obtain", "read_versions", "running", "wait_until"]
