import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.model.token import TokenKeys, last_key_id

KEYS = TokenKeys(current="k2", keys={"k1": b"old", "k2": b"new"})


@given(st.uuids().map(str), st.integers(1, 1000), st.integers(0, 1000))
def test_a_token_is_good_for_its_attempt_and_nothing_else(
    uid: str, attempt: int, epoch: int
) -> None:
    token = KEYS.sign(uid, attempt, epoch)
    assert KEYS.verify(token, uid, attempt, epoch)
    assert KEYS.sign(uid, attempt, epoch) == token
    assert not KEYS.verify(token, uid, attempt + 1, epoch)
    assert not KEYS.verify(token, uid, attempt, epoch + 1)
    assert not KEYS.verify(token, uid + "x", attempt, epoch)


def test_a_token_signed_with_an_older_key_is_still_good() -> None:
    old = TokenKeys(current="k1", keys={"k1": b"old"})
    assert KEYS.verify(old.sign("u", 1, 0), "u", 1, 0)


@pytest.mark.parametrize("token", ["", "k2", "k2.", "k9.abc", "k2.é", ".", "k1." + "0" * 32])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert not KEYS.verify(token, "u", 1, 0)


def test_the_keys_are_not_shown() -> None:
    assert "new" not in repr(KEYS)


def test_the_current_key_must_be_among_the_keys() -> None:
    with pytest.raises(ValueError, match="k3"):
        TokenKeys(current="k3", keys={"k1": b"x"})


@given(st.permutations(range(1, 25)), st.sampled_from(["k{}", "{}", "team-2-k{}", "k{}-new"]))
def test_the_key_with_the_highest_number_signs(numbers: list[int], form: str) -> None:
    ids = [form.format(number) for number in numbers]
    assert last_key_id(ids) == form.format(24)


@given(st.lists(st.text("01k", min_size=1, max_size=3), min_size=1, unique=True))
def test_ids_of_any_form_have_one_order(ids: list[str]) -> None:
    assert last_key_id(ids) == last_key_id(ids[::-1])


@given(text=st.text(st.characters(), max_size=20), attempt=st.integers(-(2**70), 2**70))
def test_any_text_is_a_claim_that_is_judged(text: str, attempt: int) -> None:
    keys = TokenKeys("k1", {"k1": b"secret"})
    assert not keys.verify(f"k1.{text}", "uid", attempt, 0)
    assert not keys.verify(text, f"uid{text}", attempt, 0)
    assert keys.verify(keys.sign(text, attempt, 0), text, attempt, 0)
