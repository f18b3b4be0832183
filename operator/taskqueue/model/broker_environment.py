"""The environment variables by which the operator gives its workers the broker's address."""

from __future__ import annotations

from collections.abc import Mapping

#: Environment variable of a worker to key of the broker's Secret.
BROKER_VARIABLES: Mapping[str, str] = {
    "TASKQUEUE_BROKER_URI": "uri",
    "TASKQUEUE_BROKER_HOST": "host",
    "TASKQUEUE_BROKER_PORT": "port",
    "TASKQUEUE_BROKER_USERNAME": "username",
    "TASKQUEUE_BROKER_PASSWORD": "password",
    "TASKQUEUE_BROKER_VHOST": "vhost",
    "TASKQUEUE_BROKER_TLS": "tls",
    "TASKQUEUE_BROKER_CA_CERT": "ca.crt",
    "TASKQUEUE_BROKER_TLS_CERT": "tls.crt",
    "TASKQUEUE_BROKER_TLS_KEY": "tls.key",
}
