"""`taskqueue dev`: the operator's and the worker's own code in one process, on a desk.

What stands between them in a cluster is in memory here: `memory_broker` for RabbitMQ, `memory_api`
for the API server. Everything else is the real thing, so a Task lives here as it does there.
"""
