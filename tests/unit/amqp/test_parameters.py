"""The keys of a broker Secret: what they mean, what is refused, and that nothing leaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.amqp.parameters import (
    BrokerConfigurationError,
    BrokerParameters,
    ManagementEndpoint,
)

KEYS = {"host": "mq", "username": "op", "password": "s3cret"}
URI = "amqp://op:s3cret@mq"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (KEYS, {"port": 5672, "virtual_host": "/", "tls": False}),
        (KEYS | {"port": "5673", "vhost": "jobs"}, {"port": 5673, "virtual_host": "jobs"}),
        (KEYS | {"port": "5671"}, {"port": 5671, "tls": True}),
        (KEYS | {"ca.crt": "CA"}, {"port": 5671, "tls": True, "ca_certificate": "CA"}),
        (KEYS | {"tls": "true", "port": "7000"}, {"port": 7000, "tls": True}),
        (KEYS | {"port": "", "vhost": "", "provider": "x"}, {"port": 5672, "virtual_host": "/"}),
        ({"uri": URI}, {"port": 5672, "virtual_host": "/", "tls": False}),
        ({"uri": URI + "/"}, {"virtual_host": "/"}),
        ({"uri": URI + "/%2F"}, {"virtual_host": "/"}),
        ({"uri": URI + "/jobs"}, {"virtual_host": "jobs"}),
        ({"uri": URI + "/team%2Fjobs"}, {"virtual_host": "team/jobs"}),
        ({"uri": URI + ":5673/jobs?heartbeat=1\n"}, {"port": 5673, "virtual_host": "jobs"}),
        ({"uri": "amqps://op:s3cret@mq"}, {"port": 5671, "tls": True}),
        ({"uri": URI, "tls": "false"}, {"tls": False, "port": 5672}),
        ({"uri": "amqp://mq", "username": "op", "password": "s3cret"}, {"port": 5672}),
        (
            KEYS | {"tls.crt": "C", "tls.key": "K"},
            {"tls": True, "client_certificate": "C", "client_key": "K"},
        ),
    ],
)
def test_what_the_keys_mean(data: dict[str, str], expected: dict[str, Any]) -> None:
    parameters = BrokerParameters.from_mapping(data)
    assert (parameters.host, parameters.username, parameters.password) == ("mq", "op", "s3cret")
    assert {name: getattr(parameters, name) for name in expected} == expected


def test_reserved_characters_of_a_uri_are_percent_encoded() -> None:
    parameters = BrokerParameters.from_mapping({"uri": "amqp://o%40p:a%2Fb%3Ac@[::1]:5673"})
    assert (parameters.username, parameters.password) == ("o@p", "a/b:c")
    assert parameters.address == "[::1]:5673/"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "key host is missing"),
        ({"host": "mq", "password": "s3cret"}, "key username is missing"),
        ({"host": "mq", "username": "op"}, "key password is missing"),
        (KEYS | {"port": "http"}, "key port must be a number from 1 to 65535, not 'http'"),
        (KEYS | {"port": "0"}, "key port must be a number"),
        (KEYS | {"port": "65536"}, "key port must be a number"),
        (KEYS | {"tls": "maybe"}, "key tls must be true or false, not 'maybe'"),
        (KEYS | {"tls.crt": "C"}, "key tls.key is missing"),
        (KEYS | {"tls.key": "K"}, "key tls.crt is missing"),
        ({"uri": "http://op:s3cret@mq"}, "must begin with amqp:// or amqps://, not http://"),
        ({"uri": "mq:5672"}, "must begin with amqp:// or amqps://"),
        ({"uri": "amqp://op:s3cret@"}, "names no host"),
        ({"uri": "amqp://op:s3cret@mq:high"}, "key uri cannot be read"),
        ({"uri": "amqp://op:s3cret@[mq"}, "key uri cannot be read"),
        ({"uri": "amqp://op:s3/cret@mq"}, "key uri cannot be read"),
        ({"uri": "amqp://:s3cret@mq"}, "key uri has no username"),
        ({"uri": "amqp://op@mq"}, "key uri has no password"),
        ({"uri": URI, "ca.crt": "CA"}, r"key ca\.crt is for TLS, and key uri begins with amqp://"),
        ({"uri": URI, "tls.crt": "C", "tls.key": "K"}, r"unencrypted: write amqps://, or remove"),
        ({"uri": URI, "tls": "true"}, "key tls is for TLS"),
        (KEYS | {"ca.crt": "CA", "tls": "false"}, "key tls is false, which sends the password"),
    ],
)
def test_what_is_refused(data: dict[str, str], message: str) -> None:
    with pytest.raises(BrokerConfigurationError, match=message) as refused:
        BrokerParameters.from_mapping(data)
    chain: BaseException | None = refused.value
    while chain is not None:
        assert "s3" not in str(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)


@given(
    uri=st.sampled_from(["", URI, "amqps://op:s3cret@mq"]),
    more=st.fixed_dictionaries(
        {},
        optional={
            "ca.crt": st.just("CA"),
            "tls": st.sampled_from(["true", "false", "TRUE", ""]),
            "port": st.sampled_from(["5671", "5672"]),
        },
    ),
    certificate=st.booleans(),
)
def test_whoever_relies_on_tls_has_it_or_is_refused(
    uri: str, more: dict[str, str], certificate: bool
) -> None:
    data = {**({"uri": uri} if uri else KEYS), **more}
    if certificate:
        data |= {"tls.crt": "C", "tls.key": "K"}
    relies = certificate or "ca.crt" in more or more.get("tls", "").lower() == "true"
    try:
        parameters = BrokerParameters.from_mapping(data)
    except BrokerConfigurationError:
        assert relies
    else:
        assert parameters.tls or not relies


@pytest.mark.parametrize("data", [KEYS, KEYS | {"ca.crt": "CA", "vhost": "jobs", "port": "7"}])
def test_another_user_reaches_the_same_broker_by_the_keys(data: dict[str, str]) -> None:
    own = BrokerParameters.from_mapping(data | {"uri": ""})
    other = BrokerParameters.from_mapping(own.to_mapping("worker", "pw"))
    assert other == replace(own, username="worker", password="pw")


def test_another_user_does_not_get_the_client_certificate() -> None:
    own = BrokerParameters.from_mapping(KEYS | {"tls.crt": "C", "tls.key": "K"})
    other = BrokerParameters.from_mapping(own.to_mapping("worker", "pw"))
    assert (other.tls, other.client_certificate, other.client_key) == (True, None, None)


def test_no_secret_is_shown() -> None:
    parameters = BrokerParameters.from_mapping(KEYS | {"tls.crt": "CERT", "tls.key": "PRIVATE"})
    for text in (repr(parameters), str(parameters), parameters.address):
        assert "s3cret" not in text
        assert "PRIVATE" not in text


def test_equal_parameters_are_one_key() -> None:
    assert len({BrokerParameters.from_mapping(KEYS), BrokerParameters.from_mapping(KEYS)}) == 1
    assert BrokerParameters.from_mapping(KEYS) != BrokerParameters.from_mapping(
        KEYS | {"password": "other"}
    )


# The endpoint of its statistics.

RABBIT = BrokerParameters(host="rabbit", port=5672, username="u", password="p")


def test_the_endpoint_beside_a_broker() -> None:
    plain = ManagementEndpoint.beside(RABBIT)
    assert (plain.url, plain.username, plain.password) == ("http://rabbit:15672", "u", "p")
    assert ManagementEndpoint.beside(replace(RABBIT, tls=True)).url == "https://rabbit:15671"
    assert ManagementEndpoint.beside(replace(RABBIT, host="::1")).url == "http://[::1]:15672"


def endpoint(**data: str) -> ManagementEndpoint:
    found = ManagementEndpoint.from_mapping(data, RABBIT)
    assert found is not None
    return found


@pytest.mark.parametrize("data", [{}, {"managementUri": ""}, {"prometheusUri": " \n"}])
def test_a_secret_of_the_cluster_operator_names_no_endpoint(data: dict[str, str]) -> None:
    assert ManagementEndpoint.from_mapping(data, RABBIT) is None


@pytest.mark.parametrize(
    ("uri", "url", "username", "password"),
    [
        ("http://rabbit:15672", "http://rabbit:15672", "u", "p"),
        (" https://rabbit/a/b/ \n", "https://rabbit/a/b", "u", "p"),
        ("http://rabbit:15672/api/", "http://rabbit:15672", "u", "p"),
        ("http://m%40:a%2Fb@rabbit:15672", "http://rabbit:15672", "m@", "a/b"),
        ("http://m@rabbit:15672", "http://rabbit:15672", "m", ""),
        ("http://[fd00::1]:15672", "http://[fd00::1]:15672", "u", "p"),
    ],
)
def test_management_uri_is_read(uri: str, url: str, username: str, password: str) -> None:
    found = endpoint(managementUri=uri)
    assert (found.url, found.username, found.password) == (url, username, password)
    assert found.broker == RABBIT


def test_the_prometheus_endpoint_is_refused_with_the_key_to_use_instead() -> None:
    with pytest.raises(
        BrokerConfigurationError, match="key prometheusUri is no longer read: use managementUri"
    ):
        endpoint(prometheusUri="http://rabbit:15692")


def test_the_prometheus_endpoint_is_ignored_beside_the_management_api() -> None:
    found = endpoint(prometheusUri="http://rabbit:15692", managementUri="http://rabbit:15672")
    assert found.url == "http://rabbit:15672"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("rabbit:15672", "must begin with http:// or https://"),
        ("ftp://u:s3cret@rabbit", "must begin with http:// or https://"),
        ("http://", "names no host"),
        ("http://u:s3/cret@rabbit:15672", "cannot be read"),
        ("http://u:s3cret@[rabbit", "cannot be read"),
    ],
)
def test_a_wrong_endpoint_names_its_key_and_no_password(uri: str, words: str) -> None:
    with pytest.raises(BrokerConfigurationError, match=words) as caught:
        endpoint(managementUri=uri)
    assert str(caught.value).startswith("key managementUri ")
    assert "s3" not in str(caught.value)


def test_a_wrong_endpoint_stops_no_connection() -> None:
    data = {"host": "rabbit", "username": "u", "password": "p", "managementUri": "rabbit"}
    assert BrokerParameters.from_mapping(data) == RABBIT


def test_an_endpoint_shows_no_password() -> None:
    shown = repr(endpoint(managementUri="http://m:s3cret@rabbit"))
    assert "s3cret" not in shown
    assert "'p'" not in shown
