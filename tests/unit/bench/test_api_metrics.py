"""Counting writes in what the API server tells of itself."""

from tests.bench.api_metrics import Resource, of_resource, parse_writes

BEFORE = """\
# HELP apiserver_request_total [STABLE] Counter of apiserver requests
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="taskqueue.dev",\
resource="tasks",scope="resource",subresource="status",verb="PATCH",version="v1alpha1"} 10
apiserver_request_total{code="201",component="apiserver",dry_run="",group="taskqueue.dev",\
resource="tasks",scope="resource",subresource="",verb="POST",version="v1alpha1"} 10
apiserver_request_duration_seconds_sum{group="taskqueue.dev",resource="tasks",verb="PATCH"} 3.5
"""
AFTER = """\
apiserver_request_total{code="200",group="taskqueue.dev",resource="tasks",subresource="status",\
verb="PATCH"} 1.010e+03
apiserver_request_total{code="422",group="taskqueue.dev",resource="tasks",subresource="status",\
verb="PATCH"} 2
apiserver_request_total{code="201",group="taskqueue.dev",resource="tasks",subresource="",\
verb="POST"} 1010
apiserver_request_total{code="200",group="taskqueue.dev",resource="tasks",subresource="",\
verb="LIST"} 7
apiserver_request_total{code="200",group="taskqueue.dev",resource="tasks",subresource="",\
verb="DELETECOLLECTION"} 1
apiserver_request_total{code="200",group="bench.taskqueue.dev",resource="tasks",\
subresource="status",verb="PATCH"} 500
apiserver_request_total{code="200",group="",resource="pods",subresource="binding",verb="POST"} 4
"""


def test_writes_are_added_up_over_answers_and_reads_left_out() -> None:
    writes = parse_writes(AFTER)
    assert writes[Resource("taskqueue.dev", "tasks", "status")] == 1012
    assert writes[Resource("taskqueue.dev", "tasks", "")] == 1010
    assert writes[Resource("", "pods", "binding")] == 4


def test_the_difference_of_a_resource_covers_its_subresources_and_no_other_group() -> None:
    writes = parse_writes(AFTER) - parse_writes(BEFORE)
    assert of_resource(writes, "taskqueue.dev", "tasks") == 1002 + 1000


def test_resources_are_named_as_rbac_does() -> None:
    assert str(Resource("taskqueue.dev", "tasks", "status")) == "tasks.taskqueue.dev/status"
    assert str(Resource("", "pods", "")) == "pods"
