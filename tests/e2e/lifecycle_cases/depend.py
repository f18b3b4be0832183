"""spec.dependsOn, spec.payloadFrom, and the size of results."""

from tests.e2e.api import Body
from tests.e2e.checks import began_after, message_names, ran, was_never
from tests.e2e.steps import (
    cancel,
    config_map,
    create,
    delete,
    edit,
    shows,
)
from tests.e2e.table import (
    Row,
    Shows,
    blocked,
    failed,
    flaky,
    nap,
    retrying,
    running,
    succeeded,
    task,
)

_WAITS = blocked("WaitingForDependencies", "spec.dependsOn: waits for Task {dep} to be Complete")
_MISSES = blocked(
    "DependencyNotFound",
    "spec.dependsOn: there is no Task {row}-dep in namespace {ns}: create it, and this Task goes "
    "on",
)
_GAVE_UP = failed(
    "NonRetryable",
    "attempt 1 of 3: NotFound: there is no such page",
    attempts=1,
    history=("1 Failed NotFound",),
)


def _because_of(role: str, how: str) -> Shows:
    return failed(
        "DependencyFailed",
        f"spec.dependsOn: Task {{ns}}/{{{role}}} {how} and will never be Complete",
    )


def _cycle(members: int) -> Shows:
    path = " -> ".join(["{row}-*"] * (members + 1))
    return failed("Invalid", f"spec.dependsOn goes in a circle: {path}: create the Tasks anew *")


DEPENDS_ON = (
    Row(
        "dependsOn one that runs",
        {"dep": nap(8), "it": nap(0.1, dependsOn=["dep"])},
        when=(shows(_WAITS),),
        then={"it": succeeded(), "dep": succeeded()},
        also=(began_after("dep"), ran(1)),
    ),
    Row(
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
    Row(
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
    Row(
        "dependsOn one that fails and is tried again: waits on",
        {
            "dep": task("flaky", {"failures": 1}, retry={"backoff": {"initialSeconds": 2.5}}),
            "it": task(dependsOn=["dep"]),
        },
        when=(
            shows(retrying("ConnectionError", "attempt 1 of 3: *"), "dep"),
            shows(_WAITS),
        ),
        then={"it": succeeded()},
        also=(began_after("dep"),),
    ),
    Row(
        "dependsOn one that is cancelled",
        {"dep": nap(30, "watch"), "it": task(dependsOn=["dep"])},
        when=(shows(_WAITS), cancel("dep")),
        then={"it": _because_of("dep", "was Cancelled")},
    ),
    Row(
        "dependsOn one that does not exist, then does",
        {"it": task(dependsOn=["dep"])},
        when=(shows(_MISSES), create("dep", nap(0.5))),
        then={"it": succeeded(), "dep": succeeded()},
        also=(began_after("dep"),),
    ),
    Row(
        "dependsOn one that is deleted unfinished, then created anew",
        {"dep": nap(30, "watch"), "it": task(dependsOn=["dep"])},
        when=(shows(_WAITS), delete("dep"), shows(_MISSES), create("dep", nap(0.5))),
        then={"it": succeeded(), "dep": succeeded()},
        also=(began_after("dep"), was_never("Failed")),
    ),
    Row(
        "dependsOn each other",
        {"it": task(dependsOn=["dep"]), "dep": task(dependsOn=["it"])},
        then={"it": _cycle(2), "dep": _cycle(2)},
        also=(message_names("it", "dep"), message_names("it", "dep", role="dep")),
    ),
    Row(
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
    Row(
        "dependsOn edited into a circle",
        {
            "far": nap(30, "watch"),
            "dep": task(dependsOn=["far"]),
            "it": task(dependsOn=["dep"]),
        },
        when=(shows(_WAITS), edit("dep", dependsOn=["far", "it"])),
        then={"it": _cycle(2), "dep": _cycle(2)},
        also=(cancel("far"),),
    ),
    Row(
        "dependsOn one that is Complete already",
        {"dep": task()},
        when=(shows(succeeded(), "dep"), create("it", task(dependsOn=["dep"]))),
        then={"it": succeeded()},
        also=(was_never("Blocked"),),
    ),
    Row(
        "dependsOn one that failed before",
        {"dep": task("give_up")},
        when=(shows(_GAVE_UP, "dep"), create("it", task(dependsOn=["dep"]))),
        then={"it": _because_of("dep", "has Failed with reason NonRetryable")},
    ),
    Row(
        "dependsOn one that was Complete and is deleted: it does not exist",
        {"dep": task()},
        when=(
            shows(succeeded(), "dep"),
            delete("dep"),
            create("it", task(dependsOn=["dep"])),
            shows(_MISSES),
            create("dep", task()),
        ),
        then={"it": succeeded()},
    ),
    Row(
        "dependsOn many that do not exist: some are named, the rest is counted",
        {"it": task(dependsOn=[f"dep{number}" for number in range(1, 8)])},
        when=(
            shows(
                blocked(
                    "DependencyNotFound",
                    "*no Task {row}-dep1, {row}-dep2, {row}-dep3, {row}-dep4, {row}-dep5 "
                    "and 2 more in namespace*",
                )
            ),
            edit(dependsOn=None),
        ),
        then={"it": succeeded()},
    ),
    Row(
        "dependsOn without effect once the Task runs",
        {"it": nap(8)},
        when=(shows(running()), edit(dependsOn=["nobody"])),
        then={"it": succeeded()},
        also=(was_never("Blocked"),),
    ),
)

_KIB = 1024


def _echo(*sources: str, payload: Body | None = None) -> Body:
    return task("echo", payload, payloadFrom=list(sources))


def _unresolved(says: str) -> Shows:
    return blocked("PayloadUnresolved", says)


PAYLOAD_FROM = (
    Row(
        "payloadFrom one ConfigMap",
        {},
        when=(config_map("base", {"a": 1, "deep": {"b": [None]}}), create("it", _echo("base"))),
        then={"it": succeeded(result={"a": 1, "deep": {"b": [None]}})},
    ),
    Row(
        "payloadFrom two, the later over the former, payload over both",
        {},
        when=(
            config_map("base", {"a": "base", "b": "base", "c": "base"}),
            config_map("over", {"b": "over", "c": "over"}),
            create("it", _echo("base", "over", payload={"c": "own"})),
        ),
        then={"it": succeeded(result={"a": "base", "b": "over", "c": "own"})},
    ),
    Row(
        "payloadFrom a ConfigMap that does not exist, then does",
        {"it": _echo("base")},
        when=(
            shows(
                _unresolved(
                    "spec.payloadFrom[0]: ConfigMap {ns}/{row}-base does not exist: create it"
                )
            ),
            config_map("base", {"a": 1}),
        ),
        then={"it": succeeded(result={"a": 1})},
    ),
    Row(
        "payloadFrom a key that does not exist, then does",
        {},
        when=(
            config_map("base", None),
            create("it", _echo("base")),
            shows(_unresolved("*ConfigMap {ns}/{row}-base has no key payload: add it")),
            config_map("base", {"a": 1}),
        ),
        then={"it": succeeded(result={"a": 1})},
    ),
    Row(
        "payloadFrom what is no JSON, then no object, then mended",
        {},
        when=(
            config_map("base", "{"),
            create("it", _echo("base")),
            shows(_unresolved("*key payload of ConfigMap {ns}/{row}-base is no JSON (*): mend it")),
            config_map("base", [1]),
            shows(_unresolved("*is no JSON object: write {{...}} there")),
            config_map("base", {"a": 1}),
        ),
        then={"it": succeeded(result={"a": 1})},
    ),
    Row(
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
    Row(
        "payloadFrom is read once: a change before the retry comes too late",
        {},
        when=(
            config_map("base", {"failures": 1}),
            create("it", flaky(1, wait=3, payloadFrom=["base"])),
            shows(retrying("ConnectionError", "attempt 1 of 2: *")),
            config_map("base", {"failures": 9}),
        ),
        then={"it": succeeded(attempts=2, history=("1 Failed ConnectionError", "2 Succeeded"))},
    ),
    Row(
        "result of 16 KiB",
        {"it": task("sized", {"bytes": 16 * _KIB})},
        then={"it": succeeded()},
    ),
    Row(
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

ROWS = DEPENDS_ON + PAYLOAD_FROM
