"""Templates, with values quoted for the language they stand in."""

import functools
import json
import shlex
from pathlib import Path
from typing import Any

__all__ = ["render"]


@functools.cache
def _environment() -> Any:
    import jinja2  # slow: not for --help

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"shell": lambda value: shlex.quote(str(value)), "json": json.dumps}
    return environment


def render(template: str, **values: Any) -> str:
    """Return `templates/<template>.jinja` with values; `shell` and `json` (which yaml reads) are its filters."""
    return _environment().get_template(f"{template}.jinja").render(**values)
