"""The peers of the worker benchmark. `peer` describes them; the other modules run as processes."""
