"""The items of a batch, with restarts at any moment."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskqueue.controller.batches import index_set
from taskqueue.controller.batches.index_set import IndexSet
from taskqueue.controller.batches.progress import ERROR_GROUPS, BatchProgress, ItemEnd
from taskqueue.model.batch import BatchRecord

SUCCEEDED = ItemEnd(succeeded=True)


def failed(error: str = "ValueError", message: str = "no", attempts: int = 1) -> ItemEnd:
    return ItemEnd(succeeded=False, error=error, message=message, attempts=attempts)


@given(st.sets(st.integers(0, 9_999)))
def test_a_set_of_indexes_is_read_as_it_was_written(indexes: set[int]) -> None:
    found = IndexSet(10_000, indexes)
    assert list(index_set.decode(found.encode(), 10_000)) == sorted(indexes)
    assert list(index_set.decode(index_set.encode(sorted(indexes)), 10_000)) == sorted(indexes)
    assert found.count == len(indexes)


@given(st.binary(max_size=64), st.integers(0, 50))
def test_what_is_no_set_of_indexes_is_refused_and_nothing_else_happens(
    data: bytes, size: int
) -> None:
    try:
        found = index_set.decode(base64.b64encode(data).decode(), size)
    except ValueError:
        return
    assert all(index < size for index in found)


@pytest.mark.parametrize("text", ["%%%", "YQ==", index_set.encode([7])])
def test_a_set_of_indexes_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        index_set.decode(text, 7)


@given(st.sets(st.integers(0, 300)), st.integers(0, 200))
def test_ranges_have_each_index_as_far_as_they_go(indexes: set[int], longest: int) -> None:
    text, cut = index_set.as_ranges(sorted(indexes), longest=longest)
    shown: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        shown += range(int(first), int(last or first) + 1)
    assert len(text) <= longest
    assert shown == sorted(indexes)[: len(shown)]
    assert cut == (len(shown) < len(indexes))


def test_2000_scattered_open_items_of_100000_take_less_than_4_kilobytes() -> None:
    chosen = sorted(random.Random(1).sample(range(100_000), 2_000))
    assert len(index_set.encode(chosen)) < 4_000
    assert len(IndexSet(100_000, range(0, 100_000, 2)).encode()) < 150


def test_errors_beyond_the_last_group_are_counted_together() -> None:
    progress = BatchProgress(40)
    for _ in range(40):
        index = progress.begin_next()
        assert index is not None
        progress.end(index, failed(f"Error{index % 20}"))
    errors = progress.record().errors
    assert len(errors) == ERROR_GROUPS
    assert sum(one.count for one in errors) == 40
    assert [one.type for one in errors][-1] == "Other"
    assert errors[0].indexes == (0, 20)


def test_errors_name_the_lowest_indexes_in_whatever_order_items_fail() -> None:
    progress = BatchProgress(9)
    for _ in range(9):
        progress.begin_next()
    for index in (7, 3, 8, 5, 1):
        progress.end(index, failed())
    (errors,) = progress.record().errors
    assert errors.indexes == (1, 3, 5)


def test_failures_too_many_to_name_are_counted_and_said_to_be_left_out() -> None:
    progress, chance = BatchProgress(100_000), random.Random(1)
    while (index := progress.begin_next()) is not None:
        progress.end(index, failed() if chance.random() < 0.5 else SUCCEEDED)
    record = progress.record()
    assert record.failed is None
    assert record.failed_ranges_cut
    assert len(record.failed_ranges) <= 512
    again = BatchProgress.restore(record)
    assert again.is_done
    assert again.failures == progress.failures


@pytest.mark.parametrize(
    "record",
    [
        BatchRecord(total=3, begun=4, succeeded=4),
        BatchRecord(total=3, begun=2, succeeded=1),
        BatchRecord(total=3, begun=2, open=index_set.encode([0]), succeeded=2),
        BatchRecord(total=3, begun=2, open=index_set.encode([2]), succeeded=1),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(record: BatchRecord) -> None:
    with pytest.raises(ValueError, match=r"."):
        BatchProgress.restore(record)


class Life(RuleBasedStateMachine):
    """A batch whose items begin and end in any order, with flushes and restarts at any moment."""

    @initialize(total=st.integers(0, 40))
    def create(self, total: int) -> None:
        self.progress = BatchProgress(total)
        self.total = total
        self.ended: dict[int, bool] = {}
        self.flushed: dict[int, bool] = {}
        self.record = self.progress.record()

    @rule()
    def begin(self) -> None:
        index = self.progress.begin_next()
        if index is None:
            assert set(self.ended) | self.progress.running == set(range(self.total))
        else:
            assert index not in self.ended

    @rule(index=st.integers(0, 45))
    def report_of_a_former_leader(self, index: int) -> None:
        expected = index < self.total and index not in self.ended
        running = index in self.progress.running
        assert self.progress.is_unended(index) == expected
        assert self.progress.begin(index) == (expected and not running)

    @precondition(lambda self: self.progress.running)
    @rule(data=st.data(), succeeds=st.booleans())
    def end(self, data: st.DataObject, succeeds: bool) -> None:
        index = data.draw(st.sampled_from(sorted(self.progress.running)))
        self.progress.end(index, SUCCEEDED if succeeds else failed())
        self.ended[index] = succeeds

    @rule(index=st.integers(0, 45))
    def end_of_what_does_not_run(self, index: int) -> None:
        if index not in self.progress.running:
            self.progress.end(index, SUCCEEDED)

    @precondition(lambda self: self.progress.running)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.progress.give_back(data.draw(st.sampled_from(sorted(self.progress.running))))

    @rule()
    def flush(self) -> None:
        self.record, self.flushed = self.progress.record(), dict(self.ended)

    @rule()
    def restart(self) -> None:
        self.progress = BatchProgress.restore(self.record)
        self.ended = dict(self.flushed)

    @invariant()
    def counts_and_sets_agree(self) -> None:
        if not hasattr(self, "progress"):
            return
        progress = self.progress
        assert progress.succeeded == sum(self.ended.values())
        assert list(progress.failed) == sorted(i for i, good in self.ended.items() if not good)
        assert progress.is_done == (len(self.ended) == self.total)
        assert progress.unbegun + len(progress.running) + len(self.ended) == self.total
        assert BatchProgress.restore(progress.record()).record() == progress.record()


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
