"""The README's table of API methods is made from the table of operations."""

from __future__ import annotations

import re
from pathlib import Path

from readme_table import STREAMED, WITHOUT_USAGE, coverage_table

from otel_llm_callback._operations import OPERATIONS

README = Path(__file__).parent.parent / "README.md"


def test_readme_has_the_table_of_coverage():
    """The README's table is what `python tests/readme_table.py coverage` prints."""
    between = re.search(r"<!-- coverage -->\n(.*?)\n?<!-- /coverage -->", README.read_text("utf-8"), re.DOTALL)
    assert between is not None, "README.md has no <!-- coverage --> … <!-- /coverage -->"
    assert between[1].strip() == coverage_table()


def test_table_of_coverage_has_a_row_for_each_operation():
    """In their order; what is said of methods is said of methods there are."""
    lines = coverage_table().splitlines()
    assert lines[0] == "| API method | Operation name | Streamed | Usage | Content |"
    assert [line.split("`")[3] for line in lines[2:]] == list(OPERATIONS)
    assert (STREAMED | WITHOUT_USAGE) - {row.where for row in OPERATIONS.values()} == set()
