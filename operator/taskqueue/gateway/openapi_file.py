"""Writes the OpenAPI document of the gateway into docs/reference."""

from __future__ import annotations

from pathlib import Path

import orjson

from taskqueue.gateway.app import make_api


def main() -> None:
    """Write the file."""
    document = make_api().openapi()
    document["info"]["version"] = "0"  # a release changes nothing else
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    Path("docs/reference/openapi.json").write_bytes(text)


if __name__ == "__main__":
    main()
