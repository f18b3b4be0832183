"""`lint`: checks manifests without a cluster, by the schemas and rules of our CRDs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskqueue.cli.arguments import CommandParsers, add_command
from taskqueue.cli.text_table import printable


def add_commands(commands: CommandParsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "lint", _lint, help="Check manifests without a cluster, by the CRDs' own rules."
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="FILE", help="file of YAML or JSON, or folder"
    )


def _lint(options: argparse.Namespace) -> int:
    from taskqueue.dev.manifests import ManifestError, files_of, read_file

    bad = checked = 0
    for path in files_of(options.paths):
        try:
            for body in read_file(path):
                found = None if (problems := problems_of(body)) is None else list(problems)
                checked += found is not None
                for problem in found or ():
                    bad += 1
                    name = (body.get("metadata") or {}).get("name", "")
                    print(printable(f"{path}: {body['kind']}/{name}: {problem}"))
        except ManifestError as error:
            bad += 1
            print(printable(str(error)))
    print(f"{checked} checked, {bad or 'no'} problem{'' if bad == 1 else 's'}", file=sys.stderr)
    return 1 if bad else 0


def problems_of(body: dict[str, Any]) -> Iterator[str] | None:
    """Return what the API server or the operator would refuse; None: it is no kind of ours."""
    from taskqueue.api.common import API_VERSION, GROUP
    from taskqueue.api.crds import DEFINITIONS, custom_resource_definition

    version = str(body.get("apiVersion", ""))
    definition = next((one for one in DEFINITIONS if one.kind == body["kind"]), None)
    if definition is None or version.partition("/")[0] != GROUP:
        return None
    if version != API_VERSION:
        return iter([f"apiVersion: is {version!r}, and must be {API_VERSION}"])
    schema = custom_resource_definition(definition)["spec"]["versions"][0]["schema"][
        "openAPIV3Schema"
    ]
    return _problems(body, schema)


def _problems(body: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    from taskqueue.cli.schema import problems, with_defaults

    # Of the metadata the CRD has no schema; a name may be generated.
    open_schema = {**schema, "properties": {**schema["properties"], "metadata": {}}}
    metadata = body.get("metadata") or {}
    given = {
        **{name: value for name, value in body.items() if name != "status"},
        "metadata": {**metadata, "name": metadata.get("name", metadata.get("generateName", ""))},
    }
    yield from problems(with_defaults(given, open_schema), open_schema)
    if not given["metadata"]["name"]:
        yield "metadata.name: is missing: give a name, or generateName"
    spec = body.get("spec")
    if body["kind"] == "TaskSchedule" and isinstance(spec, dict):
        yield from _times(spec)
    if body["kind"] == "Task" and isinstance(spec, dict):
        yield from _size(spec)


def _times(spec: dict[str, Any]) -> Iterator[str]:
    """Yield what the operator cannot read of a schedule, although the API server takes it."""
    from taskqueue.controller.schedules.calendar import UnknownZoneError, load_zone
    from taskqueue.controller.schedules.cron import InvalidCronError, parse_cron

    for number, text in enumerate(spec.get("schedules") or ()):
        try:
            parse_cron(str(text))
        except InvalidCronError as error:
            yield f"spec.schedules[{number}]: {error}"
    try:
        load_zone(str(spec.get("timeZone", "UTC")))
    except UnknownZoneError as error:
        yield f"spec.timeZone: {error}"


def _size(spec: dict[str, Any]) -> Iterator[str]:
    from taskqueue.exact_json import encode
    from taskqueue.jsonable import NotJsonError
    from taskqueue.limits import PAYLOAD_BYTES

    try:
        size = len(encode(spec.get("payload", {}), "spec.payload"))
    except NotJsonError as error:
        yield str(error)
        return
    if size > PAYLOAD_BYTES:
        yield f"spec.payload: has {size} bytes, and may have at most {PAYLOAD_BYTES}"
