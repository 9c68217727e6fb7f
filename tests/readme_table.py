"""The README's table of settings, made from `config.SETTINGS` and the docstring of `Settings`.

`python tests/readme_table.py` prints what belongs between `<!-- settings -->` and `<!-- /settings -->`.
"""

from __future__ import annotations

import re

from otel_llm_callback.config import SETTINGS, Settings, defaults

HEAD = ("Argument", "Variable", "Allowed", "Default", "What")


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
    return "\n".join(f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows))


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
    print(settings_table())
