"""Manifests are checked as the API server checks them: by the CRDs' schemas and all their rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.api.crds import DEFINITIONS, custom_resource_definition
from taskqueue.cli import cel
from taskqueue.cli.lint import problems_of
from taskqueue.cli.main import main
from tests.e2e.guides import blocks, documents, pages

GUIDES = [
    document.body
    for page in pages()
    for block in blocks(page, "yaml")
    if not block.word
    for document in documents(block)
    if not document.part_of
    and str(document.body.get("apiVersion", "")).startswith("taskqueue.dev/")
]


def schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for one in schema.get("properties", {}).values():
        yield from schemas(one)
    if "items" in schema:
        yield from schemas(schema["items"])


RULES = sorted(
    {
        rule["rule"]
        for definition in DEFINITIONS
        for one in schemas(
            custom_resource_definition(definition)["spec"]["versions"][0]["schema"][
                "openAPIV3Schema"
            ]
        )
        for rule in one.get("x-kubernetes-validations", ())
        if not cel.is_about_changes(rule["rule"])
    }
)


@pytest.mark.parametrize("number", range(len(GUIDES)))
def test_what_a_cluster_takes_has_no_problem(number: int) -> None:
    assert list(problems_of(GUIDES[number]) or ()) == []


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_of_the_crds_can_be_evaluated(rule: str) -> None:
    for value in ({}, {"metadata": {"name": "a"}, "spec": {}}, "* * * * *", [{"a": 1}]):
        # A value of another type than the rule is for has not what it asks for.
        with suppress(AttributeError, TypeError):
            assert cel.holds(rule, value) in (True, False)


def task(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "Task",
        "metadata": {"name": "t"},
        "spec": {"queue": "q", "handler": "h", **spec},
    }


def queue(**spec: Any) -> dict[str, Any]:
    broker = {"connectionSecret": {"name": "rabbit"}}
    body = task()
    return {**body, "kind": "TaskQueue", "spec": {"broker": broker, **spec}}


def schedule(**spec: Any) -> dict[str, Any]:
    template = {"spec": {"queue": "q", "handler": "h"}}
    made = {"schedules": ["0 0 * * *"], "taskTemplate": template, **spec}
    return {**task(), "kind": "TaskSchedule", "spec": made}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (task(priorty=1), "spec.priorty: there is no such field: did you mean priority?"),
        (task(priority=1001), "spec.priority: is 1001, and must be at most 1000"),
        (task(priority=True), "spec.priority: is of type bool, and must be of type integer"),
        (task(queue="Q"), "spec.queue: 'Q' does not match"),
        (task(dependsOn=["t"]), "the Task depends on itself"),
        (task(dependsOn=["a", "a"]), "spec.dependsOn: an item stands there twice"),
        (task(startAfter="tomorrow"), "spec.startAfter: 'tomorrow' does not match"),
        (task(startAfter="1969-01-01T00:00:00Z"), "startAfter is not a time in the years"),
        (task(payload={"text": "x" * 2_000_000}), "spec.payload: has"),
        (queue(scaling={"minReplicas": 3, "maxReplicas": 2}), "minReplicas is above maxReplicas"),
        (queue(scaling={"minReplicas": 3, "maxReplicas": None}), "maxReplicas: is null"),
        (queue(broker={}), "spec.broker must name one broker"),
        (queue(results={"policy": "Always"}), "policy Always needs a store"),
        (schedule(schedules=["* * * * abc"]), "a schedule has five fields"),
        (schedule(schedules=["0 0 31 2 *"]), "spec.schedules[0]: "),
        (schedule(timeZone="Europe/Berln"), "spec.timeZone: "),
        (
            schedule(startTime="2026-01-02T00:00:00Z", endTime="2026-01-01T00:00:00Z"),
            "spec.startTime must be before spec.endTime",
        ),
        ({**task(), "spec": {"queue": "q"}}, "spec.handler: is missing, and required"),
        ({**task(), "apiVersion": "taskqueue.dev/v1"}, "must be taskqueue.dev/v1alpha1"),
        ({**task(), "metadata": {}}, "metadata.name: is missing"),
    ],
)
def test_problem_names_the_field_and_what_to_do(body: dict[str, Any], says: str) -> None:
    found = "\n".join(problems_of(body) or ())
    assert says in found


@given(st.data())
def test_a_field_that_is_misspelt_anywhere_is_found(data: st.DataObject) -> None:
    body = copy.deepcopy(data.draw(st.sampled_from(GUIDES)))
    place = body["spec"]
    while nested := [name for name in place if isinstance(place[name], dict) and place[name]]:
        if "payload" in nested or "template" in nested or not data.draw(st.booleans()):
            break
        place = place[data.draw(st.sampled_from(nested))]
    place["zzz"] = 1
    found = [one for one in problems_of(body) or () if "zzz: there is no such field" in one]
    assert len(found) == 1


def test_other_kinds_are_left_alone() -> None:
    assert problems_of({"apiVersion": "v1", "kind": "Secret"}) is None
    assert problems_of({"apiVersion": "other.dev/v1", "kind": "Task"}) is None


def test_command_says_where_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(
        "apiVersion: taskqueue.dev/v1alpha1\nkind: Task\nmetadata: {generateName: t-}\n"
        "spec: {queue: q, handler: h, startAfter: 2026-01-02T03:04:05Z}\n"
    )
    bad.write_text(good.read_text().replace("handler", "handlr"))
    assert main(["lint", str(good)]) == 0
    assert main(["lint", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"{bad}: Task/: spec.handlr: there is no such field: did you mean handler?" in out
    bad.write_text("a: [")
    assert main(["lint", str(bad)]) == 1
