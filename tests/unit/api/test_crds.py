"""The generated CRDs: the files are up to date, and the API server accepts the schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field

from taskqueue.api.common import ApiModel, Resource, validations
from taskqueue.api.crds import (
    DEFINITIONS,
    UnsupportedSchemaError,
    render_crds,
    structural_schema,
    write_crds,
)
from taskqueue.api.reference import render_reference
from taskqueue.api.task import TaskResource
from taskqueue.api.task_status import TERMINAL_PHASES
from taskqueue.api.taskqueue import TaskQueueResource
from taskqueue.cli.main import main

ROOT = Path(__file__).parents[3]
CRDS = ROOT / "crds"
REFERENCE = ROOT / "docs/reference/api.md"
MODELS = [definition.model for definition in DEFINITIONS]
#: Every keyword of JSON schema a structural schema knows, and the API server's own.
STRUCTURAL_KEYWORDS = {
    *("description", "type", "format", "default", "enum", "pattern", "required"),
    *("minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties"),
    *("items", "properties", "additionalProperties"),
    *("x-kubernetes-validations", "x-kubernetes-preserve-unknown-fields"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type"),
}


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema in this one, with the path of its field."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from walk(below, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")


def at(schema: dict[str, Any], path: str) -> dict[str, Any]:
    return dict(walk(schema))[path]


def test_the_files_are_what_the_models_say() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in CRDS.iterdir()}
    assert written == render_crds(), "run: make crds"


def test_the_reference_is_what_the_models_say() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == render_reference(), "run: make crds"


def test_the_reference_names_every_field() -> None:
    text = render_reference()
    for model in MODELS:
        for path, _ in walk(structural_schema(model)):
            if path.startswith((".spec.", ".status.")) and not path.endswith("[]"):
                assert f"| `{path[1:]}` |" in text


def test_rendering_is_deterministic() -> None:
    assert render_crds() == render_crds()


def test_the_command_writes_the_files(tmp_path: Path) -> None:
    crds, reference = tmp_path / "crds", tmp_path / "reference"
    arguments = ["crds", "--directory", str(crds), "--reference", str(reference)]
    assert main(arguments) == 0
    assert (reference / "api.md").read_text() == render_reference()
    written = {path.name: path.read_text() for path in crds.iterdir()}
    assert written == render_crds()


def test_write_crds_returns_what_it_wrote(tmp_path: Path) -> None:
    assert sorted(write_crds(tmp_path)) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plural", "kind", "short_name", "columns"),
    [
        (
            "taskqueues",
            "TaskQueue",
            "tq",
            "Ready Backlog Running Workers Desired Succeeded Failed Age",
        ),
        ("tasks", "Task", "tqt", "Queue Handler Phase Attempts Reason Finished Age"),
        (
            "taskbatches",
            "TaskBatch",
            "tqb",
            "Queue Phase Total Succeeded Failed Percent Age",
        ),
        ("taskschedules", "TaskSchedule", "tqs", "Schedules Zone Paused Active Last Age"),
    ],
)
def test_names_and_columns(plural: str, kind: str, short_name: str, columns: str) -> None:
    crd = yaml.safe_load(render_crds()[f"{plural}.yaml"])
    assert crd["metadata"]["name"] == f"{plural}.taskqueue.dev"
    assert crd["spec"]["scope"] == "Namespaced"
    assert crd["spec"]["names"] == {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": [short_name],
        "categories": ["taskqueue-operator"],
    }
    (version,) = crd["spec"]["versions"]
    assert version["name"] == "v1alpha1"
    assert version["subresources"]["status"] == {}
    shown = [c["name"] for c in version["additionalPrinterColumns"] if not c.get("priority")]
    assert shown == columns.split()


def test_scale_paths_and_selectable_fields_are_fields_of_the_schema() -> None:
    for definition in DEFINITIONS:
        fields = dict(walk(structural_schema(definition.model)))
        paths = [*(definition.scale or {}).values(), *definition.selectable_fields]
        paths += [c.path for c in definition.columns if not c.path.startswith(".metadata")]
        for path in paths:
            assert path.split("[?")[0] in fields, path
    scales = {definition.plural: bool(definition.scale) for definition in DEFINITIONS}
    assert scales == {
        "taskqueues": True,
        "tasks": False,
        "taskbatches": False,
        "taskschedules": False,
    }


@pytest.mark.parametrize("model", MODELS)
def test_every_field_has_a_type_and_a_description(model: type[Resource]) -> None:
    for path, schema in walk(structural_schema(model)):
        assert isinstance(schema.get("type"), str), path
        if path == ".metadata":  # the API server describes it itself and refuses more than a type
            assert schema == {"type": "object"}
        elif not path.endswith("[]"):
            description = schema["description"]
            assert description[0].isupper(), path
            assert description.endswith("."), path


@pytest.mark.parametrize("model", MODELS)
def test_only_keywords_of_a_structural_schema(model: type[Resource]) -> None:
    for path, schema in walk(structural_schema(model)):
        assert set(schema) <= STRUCTURAL_KEYWORDS, path
        if schema["type"] == "object":
            keeps = schema.get("x-kubernetes-preserve-unknown-fields", False)
            typed = "properties" in schema or "additionalProperties" in schema
            assert typed != keeps or path == ".metadata", path
            assert "additionalProperties" not in schema or "maxProperties" in schema, path
        if schema["type"] == "array":
            assert "maxItems" in schema, path
            assert schema["x-kubernetes-list-type"] in {"atomic", "map", "set"}, path


@pytest.mark.parametrize("model", MODELS)
def test_every_string_has_a_bound(model: type[Resource]) -> None:
    for path, schema in walk(structural_schema(model)):
        if schema["type"] == "string" and path not in {".apiVersion", ".kind"}:
            assert {"maxLength", "enum", "format"} & set(schema), path


@pytest.mark.parametrize("model", MODELS)
def test_every_rule_says_what_to_do(model: type[Resource]) -> None:
    rules = [
        (rule, schema)
        for _, schema in walk(structural_schema(model))
        for rule in schema.get("x-kubernetes-validations", [])
    ]
    assert rules
    for rule, schema in rules:
        assert {"rule", "message"} <= set(rule) <= {"rule", "message", "fieldPath"}
        assert ": " in rule["message"], "what is wrong, a colon, what to do"
        assert rule.get("fieldPath", ".").removeprefix(".") in {"", *schema.get("properties", {})}


def test_the_api_server_sets_nothing_in_a_task_but_its_first_status() -> None:
    """Each default would be stored, decoded and compared for each of 100,000 Tasks."""
    schemas = dict(walk(structural_schema(TaskResource)))
    assert [path for path, schema in schemas.items() if "default" in schema] == [".status"]


def test_what_a_task_may_inherit_has_no_default() -> None:
    schema = structural_schema(TaskResource)
    defaults = at(structural_schema(TaskQueueResource), ".spec.taskDefaults")["properties"]
    assert len(defaults) == 5
    inherited = [
        path
        for path in dict(walk(schema))
        if path.startswith(tuple(f".spec.{name}" for name in defaults))
    ]
    assert len(inherited) == 13  # retry and what is in it, and the four others
    for path in inherited:
        assert "default" not in at(schema, path), path
        if not path.endswith("[]"):
            assert "TaskQueue's taskDefaults" in at(schema, path)["description"], path
    assert at(schema, ".spec")["required"] == ["queue", "handler"]


def test_bounds_of_a_task_are_those_of_its_queue() -> None:
    task = dict(walk(structural_schema(TaskResource)))
    queue = dict(walk(structural_schema(TaskQueueResource)))
    for path, schema in queue.items():
        if not path.startswith(".spec.taskDefaults."):
            continue
        own = task[path.replace(".taskDefaults", "")]
        for keyword in ("type", "minimum", "maximum", "minLength", "maxLength", "maxItems"):
            assert own.get(keyword) == schema.get(keyword), (path, keyword)


def test_parents_of_defaults_have_a_default() -> None:
    for path, schema in walk(structural_schema(TaskQueueResource)):
        if not path.startswith(".spec.") or schema["type"] != "object":
            continue
        if schema.get("required"):
            continue  # its defaults hold where it is given; by itself it cannot be
        if any("default" in below for below in schema.get("properties", {}).values()):
            assert schema["default"] == {}, path


@pytest.mark.parametrize(
    ("model", "default"),
    [
        (TaskQueueResource, {"observedGeneration": -1}),
        (TaskResource, {"phase": "Pending", "observedGeneration": -1}),
    ],
)
def test_nothing_in_a_status_is_set_but_its_own_default(
    model: type[Resource], default: dict[str, Any]
) -> None:
    status = structural_schema(model)["properties"]["status"]
    assert status["default"] == default
    assert [path for path, schema in walk(status) if path and "default" in schema] == []


def test_the_terminal_phases_are_guarded() -> None:
    schema = structural_schema(TaskResource)
    guards = [schema["x-kubernetes-validations"][0]["rule"]]
    guards.append(at(schema, ".status")["x-kubernetes-validations"][0]["rule"])
    for phase in TERMINAL_PHASES:
        assert phase in at(schema, ".status.phase")["enum"]
        assert all(f'"{phase}"' in guard for guard in guards)


class Part(ApiModel):
    """A part of the specs below."""

    size: int = Field(1, ge=0, description="How large.")


def resource_with(annotation: Any, field: Any = ...) -> type[Resource]:
    """Make a resource whose spec has one field."""

    class Spec(ApiModel):
        value: annotation = field

    class Made(Resource):
        spec: Spec
        status: Part = Field(default_factory=Part)

    return Made


def converted(annotation: Any, field: Any = ...) -> dict[str, Any]:
    return at(structural_schema(resource_with(annotation, field)), ".spec.value")


@pytest.mark.parametrize(
    ("annotation", "field", "schema"),
    [
        (int | None, Field(None, ge=1), {"type": "integer", "minimum": 1}),
        (bool, Field(False), {"type": "boolean", "default": False}),
        (Literal["One"], Field("One"), {"type": "string", "default": "One", "enum": ["One"]}),
        (
            dict[str, Any] | None,
            Field(None),
            {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        ),
        (
            dict[str, str],
            Field(default_factory=dict),
            {"type": "object", "additionalProperties": {"type": "string"}},
        ),
        (
            Part | None,
            Field(None, description="Own words.", json_schema_extra=validations(("r", "m"))),
            {
                "description": "Own words.",
                "type": "object",
                "properties": {
                    "size": {
                        "description": "How large.",
                        "type": "integer",
                        "default": 1,
                        "minimum": 0,
                    }
                },
                "x-kubernetes-validations": [{"rule": "r", "message": "m"}],
            },
        ),
    ],
)
def test_conversion(annotation: Any, field: Any, schema: dict[str, Any]) -> None:
    assert converted(annotation, field) == schema


@pytest.mark.parametrize(
    ("annotation", "field", "says"),
    [
        (float, Field(gt=0), r"Made\.spec\.value: .* 'exclusiveMinimum'"),
        (int, Field(multiple_of=5), "'multipleOf'"),
        (int | str, ..., r"Made\.spec\.value: a field has one type, not 2"),
        (Any, ..., "needs one type"),
        (Part, Field(json_schema_extra={"examples": []}), "'examples'"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused(
    annotation: Any, field: Any, says: str
) -> None:
    with pytest.raises(UnsupportedSchemaError, match=says):
        converted(annotation, field)
