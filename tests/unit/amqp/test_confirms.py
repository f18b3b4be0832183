"""Whatever the broker answers, in whichever order, each publish is settled exactly once."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.amqp.confirms import OnSettled, Settled, UnconfirmedPublishes


@dataclass
class Record:
    """What each publish was told, by its tag, and what callbacks raised."""

    told: dict[int, list[tuple[Settled, str]]] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)

    def outstanding(self) -> UnconfirmedPublishes:
        return UnconfirmedPublishes(self.errors.append)

    def callback(self, tag: int) -> OnSettled:
        self.told[tag] = []
        return lambda verdict, text: self.told[tag].append((verdict, text))


@dataclass(frozen=True)
class Publish:
    pass


@dataclass(frozen=True)
class Return:
    tag: int


@dataclass(frozen=True)
class Confirm:
    tag: int
    multiple: bool
    acked: bool


TAGS = st.integers(0, 25)
STEPS = st.lists(
    st.just(Publish())
    | st.builds(Return, TAGS)
    | st.builds(Confirm, TAGS, st.booleans(), st.booleans()),
    max_size=80,
)


@given(STEPS)
def test_each_publish_is_settled_once_and_as_the_broker_said(
    steps: list[Publish | Return | Confirm],
) -> None:
    record = Record()
    outstanding = record.outstanding()
    open_tags: list[int] = []
    returned: set[int] = set()
    expected: dict[int, Settled] = {}
    for step in steps:
        match step:
            case Publish():
                tag = len(record.told) + 1
                assert outstanding.add(f"m{tag}", record.callback(tag)) == tag
                open_tags.append(tag)
            case Return(tag):
                if tag in open_tags:
                    returned.add(tag)
                    outstanding.on_return(f"m{tag}", "no route")
            case Confirm(tag, multiple, acked):
                everything = multiple and tag == 0
                for each in list(open_tags):
                    if each == tag or everything or (multiple and each < tag):
                        open_tags.remove(each)
                        verdict = Settled.CONFIRMED if acked else Settled.UNKNOWN
                        expected[each] = Settled.RETURNED if each in returned else verdict
                outstanding.on_confirm(tag, multiple=multiple, acked=acked)
        assert len(outstanding) == len(open_tags)
    outstanding.abandon("gone")
    expected.update(dict.fromkeys(open_tags, Settled.UNKNOWN))
    assert {tag: [verdict for verdict, _ in told] for tag, told in record.told.items()} == {
        tag: [verdict] for tag, verdict in expected.items()
    }
    assert len(outstanding) == 0
    assert record.errors == []


def test_the_text_says_why() -> None:
    record = Record()
    outstanding = record.outstanding()
    for tag in (1, 2, 3, 4):
        outstanding.add(f"m{tag}", record.callback(tag))
    outstanding.on_return("m2", "312 NO_ROUTE")
    outstanding.on_confirm(2, multiple=True, acked=True)
    outstanding.on_confirm(3, multiple=False, acked=False)
    outstanding.abandon("connection lost")
    assert record.told[1] == [(Settled.CONFIRMED, "")]
    assert record.told[2] == [(Settled.RETURNED, "312 NO_ROUTE")]
    assert record.told[3][0][0] is Settled.UNKNOWN
    assert "queue is full" in record.told[3][0][1]
    assert record.told[4] == [(Settled.UNKNOWN, "connection lost")]


def test_a_callback_that_raises_does_not_hold_up_the_others() -> None:
    record = Record()
    outstanding = record.outstanding()
    problem = RuntimeError("boom")

    def fail(verdict: Settled, text: str) -> None:
        raise problem

    outstanding.add("m1", fail)
    outstanding.add("m2", record.callback(2))
    outstanding.add("m3", fail)
    outstanding.add("m4", record.callback(4))
    outstanding.on_confirm(2, multiple=True, acked=True)
    outstanding.abandon("gone")
    assert record.told == {2: [(Settled.CONFIRMED, "")], 4: [(Settled.UNKNOWN, "gone")]}
    assert record.errors == [problem, problem]


def test_a_callback_may_publish_again() -> None:
    record = Record()
    outstanding = record.outstanding()

    def again(verdict: Settled, text: str) -> None:
        assert outstanding.add("m3", record.callback(3)) == 3

    outstanding.add("m1", again)
    outstanding.add("m2", record.callback(2))
    outstanding.on_confirm(0, multiple=True, acked=True)
    assert record.told == {2: [(Settled.CONFIRMED, "")], 3: []}
    outstanding.on_confirm(3, multiple=True, acked=True)
    assert record.told[3] == [(Settled.CONFIRMED, "")]
