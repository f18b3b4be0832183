"""How many cases are tried, and what all of them share.

`make test` tries the same cases at every run: `TASKQUEUE_FUZZ_CASES` for each intake, or as many
messages as `TASKQUEUE_FUZZ_MESSAGES` says. `make test-long` tries many new ones.
"""

from __future__ import annotations

import itertools
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from taskqueue.amqp.parameters import BrokerParameters
from tests.fuzz.wire_broker import Cut

PARAMETERS = BrokerParameters(host="rabbit", port=5672, username="u", password="p")

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

#: For `make test`.
FEW = settings(
    max_examples=int(os.environ.get("TASKQUEUE_FUZZ_CASES", "1000")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=_SLOW,
)
#: For `make test-long`.
MANY = settings(FEW, max_examples=20_000, derandomize=False, print_blob=True)


def fewer(cases: settings, share: int) -> settings:
    """Return the settings for cases that take long: one of ``share``."""
    return settings(cases, max_examples=cases.max_examples // share)


#: Messages on a link: half as many on average.
MESSAGES = 6


def of_several(cases: settings) -> settings:
    """Return the settings for links of up to `MESSAGES` messages: each of those is a case."""
    share = MESSAGES // 2
    if cases is FEW and (messages := os.environ.get("TASKQUEUE_FUZZ_MESSAGES")):
        return settings(cases, max_examples=int(messages) // share)
    return fewer(cases, share)


#: More pieces show nothing new, and take long for a large body.
_PIECES = 40


def cut_by(sizes: list[int]) -> Cut:
    """Return what cuts data into pieces of these sizes, in turn."""
    if not sizes:
        return lambda data: [data]

    def cut(data: bytes) -> list[bytes]:
        at = 0
        pieces: list[bytes] = []
        for size in itertools.islice(itertools.cycle(sizes), _PIECES):
            if at >= len(data):
                return pieces
            pieces.append(data[at : at + size])
            at += size
        return [*pieces, data[at:]] if at < len(data) else pieces

    return cut


CUTS = st.lists(st.sampled_from([1, 2, 6, 7, 8, 9]) | st.integers(1, 300), max_size=5).map(cut_by)
