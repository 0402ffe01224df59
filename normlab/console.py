"""What a person sees is text of ours with errors, paths and logs of others in it."""

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """A rich console that shows text as it is. Rich would take [rank0] for markup, and :x: for an emoji."""
    return Console(highlight=False, markup=False, emoji=False, **options)
