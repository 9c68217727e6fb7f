"""The conventions' schemas of messages, and the check that every test's telemetry goes through."""

from __future__ import annotations

import functools
import json
import os
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(os.environ.get("GENAI_SCHEMAS", Path(__file__).parents[2] / "shared" / "spec" / "schemas"))

FILES = {
    "gen_ai.input.messages": "gen-ai-input-messages.json",
    "gen_ai.output.messages": "gen-ai-output-messages.json",
    "gen_ai.tool.definitions": "gen-ai-tool-definitions.json",
    "gen_ai.system_instructions": "gen-ai-system-instructions.json",
}


@functools.cache
def checker():
    """What checks the value of an attribute, each part against the very type it claims to be; None without schemas."""
    if not FOLDER.is_dir() or find_spec("jsonschema") is None:
        return None
    from jsonschema import Draft202012Validator

    schemas = {name: json.loads((FOLDER / file).read_text("utf-8")) for name, file in FILES.items()}

    def check(name, value):
        schema = schemas[name]
        Draft202012Validator(schema).validate(value)
        kinds = {
            definition["properties"]["type"]["const"]: kind
            for kind, definition in schema["$defs"].items()
            if "const" in definition.get("properties", {}).get("type", {})
        }
        is_list_of_parts = name in {"gen_ai.tool.definitions", "gen_ai.system_instructions"}
        parts = value if is_list_of_parts else [part for message in value for part in message["parts"]]
        other = "GenericToolDefinition" if name == "gen_ai.tool.definitions" else "GenericPart"
        for part in parts:
            # The schema's catch-all would let a malformed part of a known type pass.
            kind = kinds.get(part["type"], other)
            Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}).validate(part)

    return check


def check_spans(spans):
    """Check every message attribute of *spans*."""
    check = checker()
    for span in spans if check is not None else ():
        for name in FILES.keys() & (span.attributes or {}).keys():
            check(name, json.loads(span.attributes[name]))
