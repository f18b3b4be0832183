"""How the operator gives its workers the broker's address: as files, and as environment variables.

Workers read the files again for each connection, so that a changed Secret reaches them. The
variables stay as they were when the container started.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Environment variable of a worker to key of the broker's Secret; that is the name of the file too.
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

#: Names the directory with the files.
BROKER_DIRECTORY_VARIABLE = "TASKQUEUE_BROKER_DIRECTORY"
