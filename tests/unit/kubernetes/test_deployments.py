from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.kubernetes.deployments import InvalidTemplate, PoolState, read_pool, render
from taskqueue.model.broker_environment import BROKER_VARIABLES
from taskqueue.model.queue import (
    ClusterRef,
    CredentialsPolicy,
    CredentialsType,
    QueueConfig,
    ResultsConfig,
)
from taskqueue.model.result_environment import RESULT_VARIABLES
from taskqueue.model.task import Policy, RetryBackoff

CONTAINER = {"name": "main", "image": "mine:1", "env": [{"name": "MINE", "value": "1"}]}


def config(**more: Any) -> QueueConfig:
    template = {"metadata": {"labels": {"team": "a"}}, "spec": {"containers": [CONTAINER]}}
    values: dict[str, Any] = {
        "namespace": "shop",
        "name": "mails",
        "uid": "u-1",
        "generation": 1,
        "connection_secret": "rabbit",
        "template": template,
    }
    return QueueConfig(**{**values, **more})


def environment(deployment: dict[str, Any], container: int = 0) -> dict[str, Any]:
    entries = deployment["spec"]["template"]["spec"]["containers"][container]["env"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


def test_render_keeps_the_users_template_and_adds_to_it() -> None:
    deployment = render(config(), replicas=3, secret="rabbit")
    assert deployment["metadata"]["name"] == "mails-worker"
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["selector"] == {"matchLabels": {"taskqueue.dev/queue": "mails"}}
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["labels"]["taskqueue.dev/queue"] == "mails"
    assert template["spec"]["containers"][0]["image"] == "mine:1"
    owner = deployment["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("TaskQueue", "mails", "u-1")


def test_render_sets_the_queue_and_refers_to_the_secret() -> None:
    known = environment(render(config(concurrency=4), replicas=1, secret="rabbit"))
    assert known["TASKQUEUE_NAMESPACE"] == "shop"
    assert known["TASKQUEUE_QUEUE"] == "mails"
    assert known["TASKQUEUE_CONCURRENCY"] == "4"
    assert known["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert known["TASKQUEUE_BROKER_URI"] == {
        "secretKeyRef": {"name": "rabbit", "key": "uri", "optional": True}
    }
    assert known["MINE"] == "1"


def test_render_sets_no_concurrency_unless_it_is_given() -> None:
    assert "TASKQUEUE_CONCURRENCY" not in environment(render(config(), replicas=1, secret="rabbit"))


@pytest.mark.parametrize(("installation", "expected"), [("default", None), ("team-a", "team-a")])
def test_render_names_the_installation_unless_it_is_the_default(
    installation: str, expected: str | None
) -> None:
    deployment = render(config(), replicas=1, secret="rabbit", installation=installation)
    assert environment(deployment).get("TASKQUEUE_INSTALLATION") == expected


def test_render_keeps_the_users_own_variables() -> None:
    own = {**CONTAINER, "env": [{"name": "POD_NAME", "value": "mine"}]}
    deployment = render(
        config(template={"spec": {"containers": [own]}}), replicas=1, secret="rabbit"
    )
    names = [
        entry["name"] for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    ]
    assert environment(deployment)["POD_NAME"] == "mine"
    assert len(names) == len(set(names))


def test_render_adds_the_environment_to_the_named_container() -> None:
    template = {"spec": {"containers": [{"name": "sidecar"}, CONTAINER]}}
    deployment = render(config(template=template, container="main"), replicas=1, secret="rabbit")
    assert "TASKQUEUE_QUEUE" in environment(deployment, 1)
    assert "env" not in deployment["spec"]["template"]["spec"]["containers"][0]


def test_worker_grace_is_shorter_than_the_pods() -> None:
    template = {"spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 100}}
    known = environment(render(config(template=template), replicas=1, secret="rabbit"))
    assert known["TASKQUEUE_GRACE_SECONDS"] == "95"


@pytest.mark.parametrize(("time_out", "grace"), [(300, 330), (10, 60), (86_400, 86_430)])
def test_grace_period_follows_the_attempt_timeout_unless_set(time_out: int, grace: int) -> None:
    queue = config(policy=Policy(attempt_timeout_seconds=time_out))
    deployment = render(queue, replicas=1, secret="rabbit")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == grace
    assert environment(deployment)["TASKQUEUE_GRACE_SECONDS"] == str(grace - 5)


#: Values of each field of taskDefaults, as they are in Policy.
POLICY_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "attempt_timeout_seconds": st.integers(1, 86_400),
    "max_deliveries": st.integers(1, 20),
    "max_attempts": st.integers(1, 100),
    "active_deadline_seconds": st.none() | st.integers(1, 10**6),
    "ttl_seconds": st.none() | st.integers(0, 10**6),
    "non_retryable": st.frozensets(st.text(max_size=5), max_size=2),
    "backoff": st.builds(
        RetryBackoff,
        initial_seconds=st.floats(0.1, 100),
        factor=st.floats(1, 10),
        max_seconds=st.floats(100, 86_400),
        jitter=st.floats(0, 1),
    ),
}
POLICIES = st.builds(Policy, **POLICY_FIELDS)


def test_every_field_of_the_task_defaults_is_tried() -> None:
    assert POLICY_FIELDS.keys() == {field.name for field in fields(Policy)}


@given(st.lists(POLICIES, min_size=2, max_size=6))
def test_a_change_of_policy_changes_no_pod_template_but_to_raise_the_grace_period(
    policies: list[Policy],
) -> None:
    grace, before = 0, None
    for policy in policies:
        raw = render(config(policy=policy), replicas=1, secret="rabbit", grace=grace)
        template = raw["spec"]["template"]
        raised = read_pool(raw).grace > grace
        assert read_pool(raw).grace >= max(grace, policy.attempt_timeout_seconds + 30)
        assert raised or template == before
        grace, before = read_pool(raw).grace, template


def test_a_grace_period_of_the_template_is_taken_as_it_is() -> None:
    template = {"spec": {"containers": [CONTAINER], "terminationGracePeriodSeconds": 100}}
    raw = render(config(template=template), replicas=1, secret="rabbit", grace=900)
    assert read_pool(raw).grace == 100


def test_the_limits_of_direct_messages_are_mounted_and_in_the_environment_of_older_workers() -> (
    None
):
    deployment = render(config(), replicas=1, secret="rabbit")
    pod = deployment["spec"]["template"]["spec"]
    names = ["TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS", "TASKQUEUE_MAX_DELIVERIES"]
    volume, _ = pod["volumes"]
    source = volume["configMap"]
    assert (source["name"], source["optional"]) == ("mails-worker", True)
    assert [item["path"] for item in source["items"]] == names
    mount, _ = pod["containers"][0]["volumeMounts"]
    known = environment(deployment)
    assert known["TASKQUEUE_LIMITS_DIRECTORY"] == mount["mountPath"]
    for name in names:
        reference = {"name": "mails-worker", "key": name, "optional": True}
        assert known[name] == {"configMapKeyRef": reference}


def test_a_limit_that_the_template_sets_is_not_mounted() -> None:
    own = {**CONTAINER, "env": [{"name": "TASKQUEUE_MAX_DELIVERIES", "value": "9"}]}
    template = {"spec": {"containers": [own], "volumes": [{"name": "mine", "emptyDir": {}}]}}
    deployment = render(config(template=template), replicas=1, secret="rabbit")
    mine, limits, _ = deployment["spec"]["template"]["spec"]["volumes"]
    assert mine["name"] == "mine"
    paths = [item["path"] for item in limits["configMap"]["items"]]
    assert paths == ["TASKQUEUE_ATTEMPT_TIMEOUT_SECONDS"]
    assert environment(deployment)["TASKQUEUE_MAX_DELIVERIES"] == "9"


def broker_files(deployment: dict[str, Any]) -> dict[str, Any] | None:
    """Return the source of the volume with the broker's Secret; None: it is not mounted."""
    pod = deployment["spec"]["template"]["spec"]
    found = [each["secret"] for each in pod["volumes"] if each["name"] == "taskqueue-broker"]
    mounts = pod["containers"][0]["volumeMounts"]
    paths = [each["mountPath"] for each in mounts if each["name"] == "taskqueue-broker"]
    assert len(found) == len(paths) <= 1
    if found:
        assert environment(deployment)["TASKQUEUE_BROKER_DIRECTORY"] == paths[0]
    return dict(found[0]) if found else None


def test_the_secret_is_mounted_and_in_the_environment_of_older_workers() -> None:
    deployment = render(config(), replicas=1, secret="rabbit")
    source = broker_files(deployment)
    assert source is not None
    assert (source["secretName"], source["optional"]) == ("rabbit", True)
    assert [item["path"] for item in source["items"]] == list(BROKER_VARIABLES.values())
    assert BROKER_VARIABLES.keys() <= environment(deployment).keys()


@given(st.sets(st.sampled_from(list(BROKER_VARIABLES))))
def test_what_the_template_sets_is_no_file_which_would_count_before_it(own: set[str]) -> None:
    env = [{"name": name, "value": "mine"} for name in sorted(own)]
    template = {"spec": {"containers": [{**CONTAINER, "env": env}]}}
    deployment = render(config(template=template), replicas=1, secret="rabbit")
    source = broker_files(deployment)
    keys = [key for name, key in BROKER_VARIABLES.items() if name not in own]
    assert [item["key"] for item in (source or {"items": []})["items"]] == keys
    assert {name: environment(deployment)[name] for name in own} == dict.fromkeys(own, "mine")


@pytest.mark.parametrize("kind", [CredentialsType.SECRET, CredentialsType.MANAGED])
def test_credentials_of_their_own_are_in_files_only(kind: CredentialsType) -> None:
    own = config(credentials=CredentialsPolicy(type=kind))
    deployment = render(own, replicas=1, secret="own")
    source = broker_files(deployment)
    assert source is not None
    assert source["secretName"] == "own"
    assert not BROKER_VARIABLES.keys() & environment(deployment).keys()


def test_a_rotation_and_its_period_replace_no_pod() -> None:
    def template(seconds: int | None) -> Any:
        policy = CredentialsPolicy(type=CredentialsType.MANAGED, rotation_seconds=seconds)
        made = render(config(credentials=policy), replicas=1, secret="mails-worker")
        return made["spec"]["template"]

    assert template(None) == template(3600) == template(7200)


def test_a_template_may_have_files_of_its_own() -> None:
    env = [{"name": "TASKQUEUE_BROKER_DIRECTORY", "value": "/mine"}]
    template = {"spec": {"containers": [{**CONTAINER, "env": env}]}}
    deployment = render(config(template=template), replicas=1, secret="rabbit")
    assert broker_files(deployment) is None
    assert environment(deployment)["TASKQUEUE_BROKER_DIRECTORY"] == "/mine"


def probed(container: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the container as rendered with probes of the operator's."""
    template = {"spec": {"containers": [{"name": "side"}, container]}}
    asked = config(template=template, container="main", **{"managed_probes": True, **more})
    containers = render(asked, replicas=1, secret="rabbit")["spec"]["template"]["spec"][
        "containers"
    ]
    assert not [name for name in containers[0] if name.endswith("Probe")]
    return dict(containers[1])


PROBES = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


@pytest.mark.parametrize(
    ("env", "port"), [([], 8081), ([{"name": "TASKQUEUE_HEALTH_PORT", "value": "9000"}], 9000)]
)
def test_managed_probes_are_on_the_health_port_of_the_worker(env: list[Any], port: int) -> None:
    found = probed({"name": "main", "env": env})
    for name, path in PROBES.items():
        assert found[name]["httpGet"] == {"path": path, "port": port}
    startup = found["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 600


def test_there_are_no_probes_unless_they_are_asked_for() -> None:
    assert not PROBES.keys() & probed({"name": "main"}, managed_probes=False).keys()


@pytest.mark.parametrize(
    ("own", "added"),
    [
        ("startupProbe", {"livenessProbe", "readinessProbe"}),
        ("livenessProbe", {"readinessProbe"}),
        ("readinessProbe", {"startupProbe", "livenessProbe"}),
    ],
)
def test_a_probe_of_the_template_is_kept(own: str, added: set[str]) -> None:
    mine = {"exec": {"command": ["true"]}}
    found = probed({"name": "main", own: mine})
    assert found[own] == mine
    assert {name for name in PROBES if name in found} == {own, *added}


@pytest.mark.parametrize(
    "entry", [{"value": "0"}, {"value": "http"}, {"valueFrom": {"fieldRef": {}}}, {"value": None}]
)
def test_a_worker_without_a_known_health_port_has_no_managed_probes(entry: dict[str, Any]) -> None:
    env = [{"name": "TASKQUEUE_HEALTH_PORT", **entry}]
    with pytest.raises(InvalidTemplate, match=r"TASKQUEUE_HEALTH_PORT of container 'main'.*port"):
        probed({"name": "main", "env": env})
    probed({"name": "main", "env": env}, managed_probes=False)


def test_render_does_not_modify_its_input() -> None:
    queue = config()
    before = repr(queue.template)
    render(queue, replicas=1, secret="rabbit")
    assert repr(queue.template) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"template": {}}, "containers is empty"),
        ({"template": {"spec": {"containers": []}}}, "containers is empty"),
        ({"template": {"spec": {"containers": "x"}}}, "list of objects"),
        ({"template": {"spec": {"containers": ["x"]}}}, "list of objects"),
        ({"template": {"metadata": "x", "spec": {"containers": [CONTAINER]}}}, "metadata"),
        (
            {"template": {"metadata": {"labels": "a=b"}, "spec": {"containers": [CONTAINER]}}},
            "metadata.labels must be an object",
        ),
        (
            {"template": {"spec": {"containers": [{**CONTAINER, "env": "A=B"}]}}},
            "env of container .* must be a list",
        ),
        (
            {"template": {"spec": {"containers": [{**CONTAINER, "env": ["A=B"]}]}}},
            "env of container .* must be a list",
        ),
        ({"template": {"spec": {"containers": [CONTAINER], "volumes": "x"}}}, "volumes in"),
        (
            {"template": {"spec": {"containers": [{**CONTAINER, "volumeMounts": "x"}]}}},
            "volumeMounts of container 'main' in",
        ),
        ({"container": "other"}, r"'other' is none of the template's containers \['main'\]"),
    ],
)
def test_render_refuses_an_invalid_template_and_says_why(
    more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidTemplate, match=message):
        render(config(**more), replicas=1, secret="rabbit")


def test_read_pool() -> None:
    raw = {
        "metadata": {"generation": 3},
        "spec": {"replicas": 5},
        "status": {
            "observedGeneration": 3,
            "replicas": 4,
            "availableReplicas": 2,
            "conditions": [
                {"type": "Available", "status": "False", "message": "no"},
                {"type": "ReplicaFailure", "status": "True", "message": "quota"},
            ],
        },
    }
    assert read_pool(raw) == PoolState(desired=5, replicas=4, available=2, message="quota")


def test_read_pool_without_a_status() -> None:
    state = read_pool({"metadata": {"generation": 1}, "spec": {}})
    assert (state.desired, state.available) == (1, 0)


CLUSTER = {"connection_secret": "", "rabbitmq_cluster": ClusterRef("broker", "rabbit")}


def test_render_refers_to_the_given_secret() -> None:
    known = environment(render(config(**CLUSTER), replicas=1, secret="rabbit-default-user"))
    reference = known["TASKQUEUE_BROKER_HOST"]["secretKeyRef"]
    assert (reference["name"], reference["key"]) == ("rabbit-default-user", "host")


def test_pods_cannot_use_a_secret_of_another_namespace() -> None:
    with pytest.raises(InvalidTemplate, match="env TASKQUEUE_BROKER_URI"):
        render(config(**CLUSTER), replicas=1, secret=None)


@pytest.mark.parametrize(
    "own",
    [
        {"env": [{"name": "TASKQUEUE_BROKER_URI", "value": "amqp://u:p@b"}]},
        {"envFrom": [{"secretRef": {"name": "mine"}}]},
    ],
)
def test_render_accepts_a_template_with_its_own_broker_address(own: dict[str, Any]) -> None:
    template = {"spec": {"containers": [{"name": "main", **own}]}}
    deployment = render(config(template=template, **CLUSTER), replicas=1, secret=None)
    assert "TASKQUEUE_BROKER_PASSWORD" not in environment(deployment)
    assert broker_files(deployment) is None


def test_nothing_of_results_is_in_pods_of_a_queue_that_has_none() -> None:
    """A rollout would replace them for nothing."""
    known = environment(render(config(), replicas=1, secret="rabbit"))
    assert not [name for name in known if name.startswith("TASKQUEUE_RESULTS_")]
    same = config(results=ResultsConfig(always=True, retention_seconds=60))  # without a store
    assert render(same, replicas=1, secret="rabbit") == render(
        config(), replicas=1, secret="rabbit"
    )


def test_the_store_of_results_is_mounted_and_no_secret_is_in_the_environment() -> None:
    results = ResultsConfig(secret="results", always=True, retention_seconds=60, output="All")
    deployment = render(config(results=results), replicas=1, secret="rabbit")
    pod = deployment["spec"]["template"]["spec"]
    (source,) = [one["secret"] for one in pod["volumes"] if one["name"] == "taskqueue-results"]
    assert (source["secretName"], source["optional"]) == ("results", True)
    assert {one["key"]: one["path"] for one in source["items"]} == {
        key: key for key in RESULT_VARIABLES.values()
    }
    (mount,) = [
        one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "taskqueue-results"
    ]
    assert mount["readOnly"]
    known = environment(deployment)
    assert {name: text for name, text in known.items() if name.startswith("TASKQUEUE_RESULTS")} == {
        "TASKQUEUE_RESULTS_DIRECTORY": mount["mountPath"],
        "TASKQUEUE_RESULTS_POLICY": "Always",
        "TASKQUEUE_RESULTS_RETENTION_SECONDS": "60",
        "TASKQUEUE_RESULTS_OUTPUT": "All",
    }


def test_what_the_template_says_of_results_counts() -> None:
    own = {**CONTAINER, "env": [{"name": "TASKQUEUE_RESULTS_DIRECTORY", "value": "/mine"}]}
    template = {"spec": {"containers": [own]}}
    results = ResultsConfig(secret="results")
    deployment = render(config(template=template, results=results), replicas=1, secret="rabbit")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert "taskqueue-results" not in [one["name"] for one in volumes]
    assert environment(deployment)["TASKQUEUE_RESULTS_DIRECTORY"] == "/mine"
    assert environment(deployment)["TASKQUEUE_RESULTS_POLICY"] == "Overflow"
