"""How the operator gives its workers the address of the store of results: as files.

Workers elsewhere have environment variables instead. Workers read the files again for each result,
so that a changed Secret reaches them.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Environment variable of a worker to key of the store's Secret; that is the name of the file too.
RESULT_VARIABLES: Mapping[str, str] = {
    "TASKQUEUE_RESULTS_URI": "uri",
    "TASKQUEUE_RESULTS_ENDPOINT": "endpoint",
    "TASKQUEUE_RESULTS_REGION": "region",
    "TASKQUEUE_RESULTS_ACCESS_KEY_ID": "accessKeyId",
    "TASKQUEUE_RESULTS_SECRET_ACCESS_KEY": "secretAccessKey",
}

#: Names the directory with the files.
RESULT_DIRECTORY_VARIABLE = "TASKQUEUE_RESULTS_DIRECTORY"

#: What becomes of results; see `taskqueue.model.queue.ResultsConfig`.
POLICY_VARIABLE = "TASKQUEUE_RESULTS_POLICY"
RETENTION_VARIABLE = "TASKQUEUE_RESULTS_RETENTION_SECONDS"
OUTPUT_VARIABLE = "TASKQUEUE_RESULTS_OUTPUT"
