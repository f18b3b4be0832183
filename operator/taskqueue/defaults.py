"""What holds where a resource or a setting says nothing, each default written once.

A default that only one module knows stays in that module.
"""

from __future__ import annotations

#: Defaults of a TaskQueue's ``taskDefaults``, and of direct messages.
DEFAULT_ATTEMPTS = 3
DEFAULT_ATTEMPT_SECONDS = 300
DEFAULT_DELIVERIES = 3
DEFAULT_FIRST_RETRY_SECONDS = 1
DEFAULT_RETRY_FACTOR = 2
DEFAULT_LONGEST_RETRY_SECONDS = 300
DEFAULT_RETRY_JITTER = 0.1

#: The installation that an operator belongs to: this one's names at the broker do not carry it.
DEFAULT_INSTALLATION = "default"

#: So many finished Tasks of a namespace are many, and so many messages of a dead queue: as many as
#: the commands for dead letters read.
DEFAULT_MANY_FINISHED_TASKS = 10_000
DEFAULT_MANY_DEAD_LETTERS = 1000

#: Default of a TaskQueue's ``dispatch.maxPublished``.
DEFAULT_MAX_PUBLISHED = 1000

#: Names the environment variable with the address of a running `taskqueue dev`.
DEV_VARIABLE = "TASKQUEUE_DEV"
