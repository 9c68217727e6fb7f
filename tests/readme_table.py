"""The README's tables: of settings, made from `config.SETTINGS` and the docstring of `Settings`, and of coverage.

`python tests/readme_table.py` prints what belongs between `<!-- settings -->` and `<!-- /settings -->`, and
`python tests/readme_table.py coverage` what belongs between `<!-- coverage -->` and `<!-- /coverage -->`. With
`columns` it prints the table of docs/analytics.md.
"""

from __future__ import annotations

import re
import sys

from otel_llm_callback._media import NO_CONTENT
from otel_llm_callback._operations import OPERATIONS, Operation
from otel_llm_callback.callbacks._rows import COLUMNS
from otel_llm_callback.config import SETTINGS, Settings, defaults

HEAD = ("Argument", "Variable", "Allowed", "Default", "What")

COVERAGE_HEAD = ("API method", "Operation name", "Streamed", "Usage", "Content")

# What the API offers, which the table of operations does not say: it takes streams and usage as they come.
STREAMED = {
    "agents.sessions.create",
    "agents.sessions.events.stream",
    "audio.speech",
    "audio.transcriptions",
    "chat.completions",
    "completions",
    "images.edit",
    "images.generate",
    "responses",
    "responses.retrieve",
    "threads.create_and_run",
    "threads.runs.create",
    "threads.runs.submit_tool_outputs",
}
WITHOUT_USAGE = {
    "agents.automations.invocations.create",
    "agents.sessions.events.create",
    "audio.translations",
    "images.create_variation",
    "moderations",
    "vector_stores.search",
    "videos.create",
    "videos.edit",
    "videos.extend",
    "videos.remix",
}


def coverage_table() -> str:
    """Return the table of API methods as Markdown, as `settings_table` does."""
    rows = [_coverage_row(route, row) for route, row in OPERATIONS.items()]
    return _table(COVERAGE_HEAD, rows)


def _coverage_row(route: str, row: Operation) -> tuple[str, ...]:
    return (
        f"`{row.where}` `{route}`",
        f"`{row.name}`",
        "yes" if row.where in STREAMED else "no",
        "no" if row.where in WITHOUT_USAGE else "yes",
        "no" if row.content is NO_CONTENT else "yes",
    )


def columns_table() -> str:
    """Return the table of the columns that analytics sinks write, as `settings_table` does."""
    kinds = {"json": "text"}
    rows = [(f"`{column.name}`", kinds.get(column.kind, column.kind), column.meaning) for column in COLUMNS]
    return _table(("Column", "Type", "What"), rows)


def settings_table() -> str:
    """Return the table as Markdown, without the markers and without a newline at its end."""
    meanings, presets = _meanings(), defaults()
    rows = [
        (
            f"`{setting.name}`",
            f"`{setting.variable}`",
            setting.allowed,
            _shown(presets[setting.name]),
            meanings[setting.name],
        )
        for setting in SETTINGS
    ]
    return _table(HEAD, rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _meanings() -> dict[str, str]:
    """What the docstring says of each attribute, on one line and without the full stop."""
    _, _, listed = (Settings.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", listed, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("``", "`").rstrip(".") for name, text in entries}


def _shown(preset: object) -> str:
    if preset is None or preset in ((), {}):
        return "none"
    return f"`{str(preset).lower() if isinstance(preset, bool) else preset}`"


if __name__ == "__main__":
    tables = {"columns": columns_table, "coverage": coverage_table}
    print(tables.get(sys.argv[-1], settings_table)())
