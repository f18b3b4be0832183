"""spec.dependsOn, spec.payloadFrom, and the size of results."""

from tests.e2e.api import Body
from tests.e2e.checks import began_after, message_names, ran, was_never
from tests.e2e.lifecycle_case import (
    ExpectedStatus,
    LifecycleCase,
    blocked,
    ended,
    failed,
    nap,
    retrying,
    running,
    succeeded,
    task,
)
from tests.e2e.steps import (
    cancel,
    config_map,
    create,
    delete,
    edit,
    reaches,
)

_WAITS = blocked("WaitingForDependencies", "spec.dependsOn: waits for Task {dep} to be Complete")
_MISSES = blocked(
    "DependencyNotFound",
    "spec.dependsOn: there is no Task {case}-dep in namespace {ns}: create it, and this Task "
    "continues",
)
_GAVE_UP = failed(
    "NonRetryable",
    "attempt 1 of 3: NotFound: there is no such page",
    attempts=1,
    history=("1 Failed NotFound",),
)


def _because_of(role: str, how: str) -> ExpectedStatus:
    return failed(
        "DependencyFailed",
        f"spec.dependsOn: Task {{ns}}/{{{role}}} {how} and will never be Complete",
    )


def _cycle(members: int) -> ExpectedStatus:
    path = " -> ".join(["{case}-*"] * (members + 1))
    return failed("Invalid", f"spec.dependsOn is circular: {path}: create the Tasks again *")


DEPENDS_ON = (
    LifecycleCase(
        "dependsOn one that runs",
        {"dep": nap(8), "it": nap(0.1, dependsOn=["dep"])},
        when=(reaches(_WAITS),),
        then={"it": succeeded(), "dep": succeeded()},
        also=(began_after("dep"), ran(1)),
    ),
    LifecycleCase(
        "dependsOn in a diamond",
        {
            "it": nap(0.1, dependsOn=["left", "right"]),
            "left": nap(0.3, dependsOn=["top"]),
            "right": nap(0.1, dependsOn=["top"]),
            "top": nap(0.1),
        },
        then={role: succeeded() for role in ("top", "left", "right", "it")},
        also=(
            began_after("top", "left"),
            began_after("top", "right"),
            began_after("left"),
            began_after("right"),
            ran(1),
        ),
    ),
    LifecycleCase(
        "dependsOn one that fails: so does the whole chain",
        {
            "it": task(dependsOn=["middle"]),
            "middle": task(dependsOn=["dep"]),
            "dep": task("give_up"),
        },
        then={
            "dep": _GAVE_UP,
            "middle": _because_of("dep", "has Failed with reason NonRetryable"),
            "it": _because_of("middle", "has Failed with reason DependencyFailed"),
        },
        also=(was_never("Running"),),
    ),
    LifecycleCase(
        "dependsOn one that fails and is retried: it keeps waiting",
        {
            "dep": task("flaky", {"failures": 1}, retry={"backoff": {"initialSeconds": 2.5}}),
            "it": task(dependsOn=["dep"]),
        },
        when=(
            reaches(retrying("ConnectionError", "attempt 1 of 3: *"), "dep"),
            reaches(_WAITS),
        ),
        then={"it": succeeded()},
        also=(began_after("dep"),),
    ),
    LifecycleCase(
        "dependencies after a failure, and in any case",
        {
            "dep": task("give_up"),
            "it": nap(0.1, dependencies=[{"name": "dep", "when": "Failed"}]),
            "any": nap(0.1, dependencies=[{"name": "dep", "when": "Finished"}]),
            "not": task(dependencies=[{"name": "it", "when": "Failed"}]),
            "then": nap(0.1, dependencies=[{"name": "not", "when": "Finished"}]),
        },
        then={
            "dep": _GAVE_UP,
            "it": succeeded(),
            "any": succeeded(),
            "not": ended(
                "Skipped",
                "spec.dependencies: Task {ns}/{it} has Succeeded, and this one runs only when it "
                "has Failed",
            ),
            "then": succeeded(),
        },
        also=(began_after("dep"), began_after("dep", "any"), ran(1)),
    ),
    LifecycleCase(
        "dependsOn one that is cancelled",
        {"dep": nap(30, "watch"), "it": task(dependsOn=["dep"])},
        when=(reaches(_WAITS), cancel("dep")),
        then={"it": _because_of("dep", "was Cancelled")},
    ),
    LifecycleCase(
        "dependsOn one that does not exist, then does",
        {"it": task(dependsOn=["dep"])},
        when=(reaches(_MISSES), create("dep", nap(0.5))),
        then={"it": succeeded(), "dep": succeeded()},
        also=(began_after("dep"),),
    ),
    LifecycleCase(
        "dependsOn one that is deleted unfinished, then created again",
        {"dep": nap(30, "watch"), "it": task(dependsOn=["dep"])},
        when=(reaches(_WAITS), delete("dep"), reaches(_MISSES), create("dep", nap(0.5))),
        then={"it": succeeded(), "dep": succeeded()},
        also=(began_after("dep"), was_never("Failed")),
    ),
    LifecycleCase(
        "dependsOn each other",
        {"it": task(dependsOn=["dep"]), "dep": task(dependsOn=["it"])},
        then={"it": _cycle(2), "dep": _cycle(2)},
        also=(message_names("it", "dep"), message_names("it", "dep", role="dep")),
    ),
    LifecycleCase(
        "dependsOn in a circle of three; one outside of it depends on a member",
        {
            "it": task(dependsOn=["two"]),
            "two": task(dependsOn=["three"]),
            "three": task(dependsOn=["it"]),
            "outside": task(dependsOn=["it"]),
        },
        then={
            "it": _cycle(3),
            "two": _cycle(3),
            "three": _cycle(3),
            "outside": _because_of("it", "has Failed with reason Invalid"),
        },
        also=tuple(message_names("it", "two", "three", role=one) for one in ("it", "two", "three")),
    ),
    LifecycleCase(
        "dependsOn edited into a circle",
        {
            "far": nap(30, "watch"),
            "dep": task(dependsOn=["far"]),
            "it": task(dependsOn=["dep"]),
        },
        when=(reaches(_WAITS), edit("dep", dependsOn=["far", "it"])),
        then={"it": _cycle(2), "dep": _cycle(2)},
        also=(cancel("far"),),
    ),
    LifecycleCase(
        "dependsOn one that is Complete already",
        {"dep": task()},
        when=(reaches(succeeded(), "dep"), create("it", task(dependsOn=["dep"]))),
        then={"it": succeeded()},
        also=(was_never("Blocked"),),
    ),
    LifecycleCase(
        "dependsOn one that failed before",
        {"dep": task("give_up")},
        when=(reaches(_GAVE_UP, "dep"), create("it", task(dependsOn=["dep"]))),
        then={"it": _because_of("dep", "has Failed with reason NonRetryable")},
    ),
    LifecycleCase(
        "dependsOn one that was Complete and is deleted: it does not exist",
        {"dep": task()},
        when=(
            reaches(succeeded(), "dep"),
            delete("dep"),
            create("it", task(dependsOn=["dep"])),
            reaches(_MISSES),
            create("dep", task()),
        ),
        then={"it": succeeded()},
    ),
    LifecycleCase(
        "dependsOn many that do not exist: some are named, the rest is counted",
        {"it": task(dependsOn=[f"dep{number}" for number in range(1, 8)])},
        when=(
            reaches(
                blocked(
                    "DependencyNotFound",
                    "*no Task {case}-dep1, {case}-dep2, {case}-dep3, {case}-dep4, {case}-dep5 "
                    "and 2 more in namespace*",
                )
            ),
            edit(dependsOn=None),
        ),
        then={"it": succeeded()},
    ),
    LifecycleCase(
        "dependsOn without effect once the Task runs",
        {"it": nap(8)},
        when=(reaches(running()), edit(dependsOn=["nobody"])),
        then={"it": succeeded()},
        also=(was_never("Blocked"),),
    ),
)

_KIB = 1024
_SOON_AGAIN = {"maxAttempts": 2, "backoff": {"initialSeconds": 3}}


def _echo(*sources: str, payload: Body | None = None) -> Body:
    return task("echo", payload, payloadFrom=list(sources))


def _unresolved(says: str) -> ExpectedStatus:
    return blocked("PayloadUnresolved", says)


PAYLOAD_FROM = (
    LifecycleCase(
        "payloadFrom one ConfigMap",
        {},
        when=(config_map("base", {"a": 1, "deep": {"b": [None]}}), create("it", _echo("base"))),
        then={"it": succeeded(result={"a": 1, "deep": {"b": [None]}})},
    ),
    LifecycleCase(
        "payloadFrom two, the later over the former, payload over both",
        {},
        when=(
            config_map("base", {"a": "base", "b": "base", "c": "base"}),
            config_map("over", {"b": "over", "c": "over"}),
            create("it", _echo("base", "over", payload={"c": "own"})),
        ),
        then={"it": succeeded(result={"a": "base", "b": "over", "c": "own"})},
    ),
    LifecycleCase(
        "payloadFrom a ConfigMap that does not exist, then does",
        {"it": _echo("base")},
        when=(
            reaches(
                _unresolved(
                    "spec.payloadFrom[0]: ConfigMap {ns}/{case}-base does not exist: create it"
                )
            ),
            config_map("base", {"a": 1}),
        ),
        then={"it": succeeded(result={"a": 1})},
    ),
    LifecycleCase(
        "payloadFrom a key that does not exist, then does",
        {},
        when=(
            config_map("base", None),
            create("it", _echo("base")),
            reaches(_unresolved("*ConfigMap {ns}/{case}-base has no key payload: add it")),
            config_map("base", {"a": 1}),
        ),
        then={"it": succeeded(result={"a": 1})},
    ),
    LifecycleCase(
        "payloadFrom with invalid JSON, then not an object, then corrected",
        {},
        when=(
            config_map("base", "{"),
            create("it", _echo("base")),
            reaches(
                _unresolved(
                    "*key payload of ConfigMap {ns}/{case}-base is not valid JSON (*): fix it"
                )
            ),
            config_map("base", [1]),
            reaches(_unresolved("*is not a JSON object: put {{...}} there")),
            config_map("base", {"a": 1}),
        ),
        then={"it": succeeded(result={"a": 1})},
    ),
    LifecycleCase(
        "payloadFrom more than 200 KiB when merged",
        {},
        when=(
            config_map("base", {"a": "x" * 120 * _KIB}),
            config_map("over", {"b": "x" * 120 * _KIB}),
            create("it", _echo("base", "over")),
        ),
        then={
            "it": failed(
                "Invalid",
                "spec.payload, merged with what spec.payloadFrom names, has * bytes, the limit is "
                "204800: keep the data elsewhere, *",
            )
        },
    ),
    LifecycleCase(
        "payloadFrom is read for each attempt: a change before the retry counts",
        {},
        when=(
            config_map("base", {"failures": 9}),
            create("it", task("flaky", retry=_SOON_AGAIN, payloadFrom=["base"])),
            reaches(retrying("ConnectionError", "attempt 1 of 2: *")),
            config_map("base", {"failures": 1}),
        ),
        then={
            "it": succeeded(
                attempts=2,
                history=("1 Failed ConnectionError", "2 Succeeded"),
                also=frozenset({"PayloadChanged"}),
            )
        },
    ),
    LifecycleCase(
        "result of 16 KiB",
        {"it": task("sized", {"bytes": 16 * _KIB})},
        then={"it": succeeded()},
    ),
    LifecycleCase(
        "result of a byte more",
        {"it": task("sized", {"bytes": 16 * _KIB + 1})},
        then={
            "it": failed(
                "NonRetryable",
                "attempt 1 of 3: ResultTooLarge: the result is 16385 bytes of JSON, *",
                attempts=1,
                history=("1 Failed ResultTooLarge",),
            )
        },
    ),
)

CASES = DEPENDS_ON + PAYLOAD_FROM
