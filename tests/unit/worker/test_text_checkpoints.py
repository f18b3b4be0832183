"""Checkpoints of programs and services: read from text, refused with a reason, or saved."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import assume, example, given
from hypothesis import strategies as st

from taskqueue.contract.outcome import EventKind, decode
from taskqueue.limits import CHECKPOINT_BYTES
from taskqueue.worker.attempt_events import event_of, work_attempt
from taskqueue.worker.checkpoints import WRITTEN_BYTES, TextCheckpoint, read_checkpoint
from taskqueue.worker.executor import AttemptRequest
from taskqueue.worker.executors.http import HttpTarget
from tests.unit.worker.children import appears, attempt
from tests.unit.worker.fakes import work
from tests.unit.worker.hostile_ends import BODIES
from tests.unit.worker.test_command_executor import python, shell
from tests.unit.worker.test_http_executor import service

OBJECTS = st.dictionaries(
    st.sampled_from(["value", "a", "ä"]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ),
    max_size=3,
)

#: No JSON for us, wherever they stand.
WRONG_VALUES = [
    "NaN",
    "-Infinity",
    "1e999",
    str(2**63),
    str(-(2**63) - 1),
    "9" * 400,
    r'"\ud800"',
    "[" * 101 + "]" * 101,
    '{"a":' * 5000 + "1" + "}" * 5000,
    json.dumps("x" * CHECKPOINT_BYTES),
    json.dumps(["ä" * (CHECKPOINT_BYTES // 2)], ensure_ascii=False),
    "'a'",
    "",
    "1,,2",
]


@st.composite
def wrong_objects(draw: st.DrawFn) -> bytes:
    text: str = draw(st.sampled_from(WRONG_VALUES))
    around = st.sampled_from(['{"a": %s}', "[%s]", '{"value": %s}', '{"b": 1, "a": [2, %s]}'])
    for outer in draw(st.lists(around, max_size=4)):
        text = outer % text
    return f'{{"a": {text}}}'.encode()


WRONG = (
    wrong_objects()
    | st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers())).map(
        lambda value: json.dumps(value).encode()
    )
    | st.binary(max_size=20)
    | st.sampled_from([b'{"a": "\xff"}', b'{"a": 1} ' + b" " * WRITTEN_BYTES, b'{"a": 1} x'])
)


def asked(saved: list[bytes], **changes: Any) -> AttemptRequest:
    return replace(attempt(), on_checkpoint=saved.append, **changes)


@given(OBJECTS, st.sampled_from([None, 2, "\r\n\t "]))
def test_an_object_is_saved_and_read_as_it_was_written(value: Any, indent: Any) -> None:
    saved: list[bytes] = []
    checkpoint = TextCheckpoint(asked(saved))
    assert checkpoint.last == b""
    assert checkpoint.save(json.dumps(value, indent=indent).encode()) == ""
    assert json.loads(checkpoint.last) == value
    (encoded,) = saved
    # As the operator and the next worker read it.
    event = event_of(work(), EventKind.CHECKPOINT, worker="w", checkpoint=read_checkpoint(encoded))
    assert decode(event.body).checkpoint == json.loads(encoded)
    next_start = work_attempt(work(checkpoint=encoded, checkpointed=True), {})
    assert json.loads(TextCheckpoint(next_start).last) == value


@given(WRONG)
@example(b'{"value": ' + b"[" * 99 + b"]" * 99 + b"}")  # one level more as it travels
@example(b'{"a":"' + b"x" * (CHECKPOINT_BYTES - 7) + b'"}')
@example(b"{" * 10**6)
def test_anything_else_is_refused_and_changes_nothing(text: bytes) -> None:
    saved: list[bytes] = []
    checkpoint = TextCheckpoint(asked(saved, checkpoint=b'{"page":3}'))
    reason = checkpoint.save(text)
    assert reason
    reason.encode()
    assert len(reason) < 500
    assert (saved, checkpoint.last) == ([], b'{"page":3}')


@given(OBJECTS, st.data())
def test_half_of_an_object_is_never_taken_for_the_whole(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value).encode()
    half = text[: data.draw(st.integers(0, len(text) - 1))]
    assume(half)
    assert TextCheckpoint(attempt()).save(half)


def test_what_is_refused_is_logged_with_its_task_and_a_hint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    TextCheckpoint(attempt()).save(b'{"page": NaN}')
    (record,) = caplog.records
    assert record.getMessage() == "checkpoint.refused"
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["task"] == "a"
    assert fields["reason"].startswith("checkpoint.page: nan is not a JSON number")
    assert fields["hint"]


def test_spaces_do_not_count() -> None:
    text = b'{"a":"' + b"x" * (CHECKPOINT_BYTES - 8) + b'"}'
    assert TextCheckpoint(attempt()).save(text + b" " * CHECKPOINT_BYTES) == ""


def test_a_value_that_a_function_saved_is_read_as_it_was() -> None:
    assert TextCheckpoint(replace(attempt(), checkpoint=b'{"value":7}')).last == b"7"


# Programs.


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.worker.executors.attempt_files._READ_SECONDS", 0.01)


@pytest.fixture
def at_the_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.worker.executors.attempt_files._READ_SECONDS", 1000)


PAGES = """
import json, os, pathlib, sys, time
saved = pathlib.Path(os.environ["TASKQUEUE_CHECKPOINT_FILE"])
before = json.loads(saved.read_bytes()) if saved.exists() else None
for page in range(3):
    new = saved.with_suffix(".new")
    new.write_text(json.dumps({"page": page}, indent=2))
    new.replace(saved)
    while not pathlib.Path(sys.argv[1], f"saved-{page}").exists():
        time.sleep(0.005)
saved.write_text(json.dumps({"value": 1}))
print(json.dumps({"before": before}))
"""


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("last", [None, b'{"page":7}', b'{"value":{"value":7}}', b'{"value":[1]}'])
async def test_a_program_finds_its_last_checkpoint_and_saves_others_while_it_runs(
    tmp_path: Path, last: bytes | None
) -> None:
    saved: list[bytes] = []

    def on_checkpoint(encoded: bytes) -> None:
        saved.append(encoded)
        (tmp_path / f"saved-{len(saved) - 1}").touch()

    async with shell(python(PAGES, str(tmp_path))) as made:
        result = await made.run(checkpoint=last, on_checkpoint=on_checkpoint)
    before = {None: None, b'{"page":7}': {"page": 7}, b'{"value":[1]}': [1]}
    assert result.result == {"before": before.get(last, {"value": 7})}
    pages = [b'{"page":%d}' % page for page in range(3)]
    assert saved == [*pages, b'{"value":{"value":1}}'], "the last one by the end of the program"


@pytest.mark.usefixtures("at_the_end_only")
async def test_a_program_that_is_stopped_has_saved_before_its_end_is_published(
    tmp_path: Path,
) -> None:
    script = (
        'trap \'echo "{\\"page\\": 2}" >"$TASKQUEUE_CHECKPOINT_FILE"; exit 143\' TERM\n'
        'echo \'{"page": 1}\' >"$TASKQUEUE_CHECKPOINT_FILE"\n'
        f"echo x >{tmp_path}/there\n"
        "sleep 1000 & wait $!"
    )
    saved: list[bytes] = []
    async with shell(f"sh -c {shlex.quote(script)}") as made:
        execution = made.start(on_checkpoint=saved.append)
        await appears(tmp_path / "there")
        assert saved == []
        execution.cancel()
        assert saved == [b'{"page":1}']
        assert (await made.error())[0] == "Cancelled"
    assert saved == [b'{"page":1}', b'{"page":2}'], "what it saved when it was asked to end"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    "how",
    [
        "mkfifo",
        "mkdir",
        "ln -s /dev/zero",
        "ln -s ${TASKQUEUE_CHECKPOINT_FILE##*/}",
        "echo 7 >",
        "head -c 99999 /dev/zero >$TASKQUEUE_RESULT_FILE; mv $TASKQUEUE_RESULT_FILE",
    ],
)
async def test_a_program_with_a_wrong_checkpoint_goes_on_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    saved: list[bytes] = []
    script = f"{how} $TASKQUEUE_CHECKPOINT_FILE; sleep 0.1; echo '{{\"a\": 1}}'"
    async with shell(f"sh -c {shlex.quote(script)}") as made:
        result = await made.run(on_checkpoint=saved.append)
    assert (result.error, result.result, saved) == (None, {"a": 1}, [])
    assert [record.getMessage() for record in caplog.records].count("checkpoint.refused") == 1


@pytest.mark.usefixtures("often")
async def test_a_file_that_a_program_empties_or_removes_is_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = (
        'file=$TASKQUEUE_CHECKPOINT_FILE; echo \'{"page": 1}\' >"$file"\n'
        f"until test -e {tmp_path}/saved; do sleep 0.01; done\n"
        ': >"$file"; sleep 0.1; rm "$file"'
    )
    saved: list[bytes] = []

    def on_checkpoint(encoded: bytes) -> None:
        saved.append(encoded)
        (tmp_path / "saved").touch()

    async with shell(f"sh -c {shlex.quote(script)}") as made:
        assert (await made.run(on_checkpoint=on_checkpoint)).error is None
    assert saved == [b'{"page":1}']
    assert "checkpoint.refused" not in caplog.text


@pytest.mark.usefixtures("often")
async def test_the_file_of_a_program_that_has_ended_is_read_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths: list[Path] = []

    def read(path: Path, limit: int) -> bytes:
        paths.append(path)
        return b""

    monkeypatch.setattr("taskqueue.worker.executors.attempt_files.read_file", read)
    async with shell("sleep 0.1") as made:
        await made.run()
        reads = len(paths)
        await asyncio.sleep(0.1)
    assert len(paths) == reads


@pytest.mark.usefixtures("at_the_end_only")
async def test_whatever_a_program_saves_it_ends(tmp_path: Path) -> None:
    for name, body in BODIES.items():
        (tmp_path / name).write_bytes(body)
    line = 'cat "$1/$TASKQUEUE_UID" >"$TASKQUEUE_CHECKPOINT_FILE"'
    saved: list[bytes] = []
    async with shell(shlex.join(["sh", "-c", line, "sh", str(tmp_path)])) as made:
        for name in BODIES:
            result = await made.run(uid=name, on_checkpoint=saved.append)
            assert (result.error, result.result) == (None, None)
    assert saved == [b'{"a":2}'], "of a repeated key the last"


async def test_a_program_is_not_run_without_a_checkpoint_that_there_may_be(tmp_path: Path) -> None:
    async with shell(f"touch {tmp_path}/ran") as made:
        result = await made.run(checkpoint_known=False)
        assert (result.released, result.error) == (True, None)
        assert not (tmp_path / "ran").exists()
        made.start(handler="g", checkpoint_known=False)
        assert (await made.error())[0] == "UnknownHandler"


@pytest.mark.usefixtures("often")
async def test_of_a_message_that_nobody_keeps_a_checkpoint_of_a_program_saves_in_vain() -> None:
    script = 'test ! -e "$TASKQUEUE_CHECKPOINT_FILE" && echo "{}" >"$TASKQUEUE_CHECKPOINT_FILE"'
    async with shell(f"sh -c {shlex.quote(script)}") as made:
        assert (await made.run(on_checkpoint=None)).error is None


# Services.

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


def with_checkpoint(work_on: Callable[[aiohttp.ClientSession, str], Awaitable[Any]]) -> Handle:
    """A service that answers a POST with what ``work_on`` returns, given its checkpoint's URL."""

    async def handle(request: web.Request) -> web.Response:
        if request.method != "POST":
            return web.Response(status=204)
        async with aiohttp.ClientSession() as session:
            url = request.headers["Taskqueue-Checkpoint-Url"]
            return web.json_response(await work_on(session, url))

    return handle


async def ask(
    session: aiohttp.ClientSession, method: str, url: str, data: bytes | None = None
) -> tuple[int, str]:
    async with session.request(method, url, data=data) as answer:
        return answer.status, (await answer.text()).strip()


async def test_a_service_finds_its_last_checkpoint_and_saves_others() -> None:
    saved: list[bytes] = []
    urls: list[str] = []

    async def work_on(session: aiohttp.ClientSession, url: str) -> Any:
        urls.append(url)
        return {
            "answers": [
                await ask(session, "GET", url),
                await ask(session, "PUT", url, b'{"page": 1}'),
                await ask(session, "GET", url),
                await ask(session, "PUT", url, b'{"page": NaN}'),
                await ask(session, "PUT", url, b"[1]"),
                await ask(session, "PUT", url, b" " * 2**21),
                await ask(session, "GET", url),
                await ask(session, "POST", url, b"{}"),
                await ask(session, "GET", url + "x"),
            ]
        }

    async with service(with_checkpoint(work_on)) as caller:
        first = await caller.run(on_checkpoint=saved.append)
        second = await caller.run(checkpoint=saved[0], on_checkpoint=None)
        async with aiohttp.ClientSession() as session:
            assert [(await ask(session, "PUT", url, b"{}"))[0] for url in urls] == [404, 404]
    assert first.result is not None
    assert second.result is not None
    statuses = [status for status, _ in first.result["answers"]]
    assert statuses == [204, 204, 200, 400, 400, 413, 200, 405, 404]
    texts = [text for _, text in first.result["answers"]]
    assert texts[3].startswith("checkpoint.page: nan is not a JSON number")
    assert texts[4] == "not a JSON object but list"
    assert texts[2] == texts[6] == '{"page":1}'
    assert second.result["answers"][0] == [200, '{"page":1}']
    assert saved == [b'{"page":1}']
    assert urls[0] != urls[1]


async def test_a_service_that_asks_for_what_its_message_cannot_say_is_given_back() -> None:
    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def handle(request: web.Request) -> web.Response:
        await seen.put(request.method)
        if request.method == "POST":
            async with aiohttp.ClientSession() as session:
                await seen.put(
                    await ask(session, "GET", request.headers["Taskqueue-Checkpoint-Url"])
                )
        return web.Response()

    async with service(handle) as caller:
        result = await caller.run(checkpoint_known=False)
        assert (result.released, result.error) == (True, None)
    requests = [seen.get_nowait() for _ in range(seen.qsize())]
    assert requests[0] == "POST"
    assert "DELETE" in requests, "it is asked to stop before the attempt is given back"


@pytest.mark.parametrize("first", ["PUT", None])
async def test_a_service_that_saves_before_it_asks_or_never_asks_is_not_given_back(
    first: str | None,
) -> None:
    async def work_on(session: aiohttp.ClientSession, url: str) -> Any:
        if first is not None:
            await ask(session, first, url, b'{"page": 1}')
            assert (await ask(session, "GET", url))[0] == 200
        return {"done": True}

    async with service(with_checkpoint(work_on)) as caller:
        result = await caller.run(checkpoint_known=False)
    assert (result.released, result.result) == (False, {"done": True})


async def test_an_attempt_that_is_cancelled_at_once_takes_the_checkpoint_from_no_other() -> None:
    async def work_on(session: aiohttp.ClientSession, url: str) -> Any:
        return {"answer": await ask(session, "GET", url)}

    async with service(with_checkpoint(work_on)) as caller:
        first = caller.start(uid="first")
        caller.start(uid="second")
        await asyncio.sleep(0)
        first.kill()
        results = [await caller.result(), await caller.result()]
    assert {None if each.error is None else each.error.type for each in results} == {
        "Cancelled",
        None,
    }
    assert [each.result for each in results if each.error is None] == [{"answer": [204, ""]}]


async def test_a_worker_without_a_port_to_open_tries_again_with_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work_on(session: aiohttp.ClientSession, url: str) -> Any:
        return {"answer": await ask(session, "GET", url)}

    async def refused(site: web.TCPSite) -> None:
        raise OSError(24, "Too many open files")

    async with service(with_checkpoint(work_on)) as caller:
        with monkeypatch.context() as patched:
            patched.setattr(web.TCPSite, "start", refused)
            error = (await caller.run()).error
        assert error is not None
        assert (error.type, error.retryable) == ("HttpUnreachable", True)
        assert "Too many open files" in error.message
        assert (await caller.run()).result == {"answer": [204, ""]}


async def test_a_service_outside_the_pod_gets_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not HttpTarget.parse("f=http://10.0.0.1/", anywhere=True).in_pod
    assert HttpTarget.parse("f=http://[::1]:8000/").in_pod
    monkeypatch.setattr(HttpTarget, "in_pod", False)

    async def handle(request: web.Request) -> web.Response:
        return web.json_response({"headers": [name.lower() for name in request.headers]})

    async with service(handle) as caller:
        result = await caller.run()
    assert result.result is not None
    assert "taskqueue-uid" in result.result["headers"]
    assert "taskqueue-checkpoint-url" not in result.result["headers"]
