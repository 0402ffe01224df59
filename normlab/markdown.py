"""Tables and texts in Markdown."""

import re
from collections.abc import Sequence


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table of cells in Markdown. With `numbers`, all columns but the first are right-aligned."""
    rules = ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, rules, *rows])


def escape(text: str) -> str:
    """Plain text escaped for GitHub's Markdown, so that nothing ends a column or begins a tag, a link or code."""
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")
