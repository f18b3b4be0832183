"""What the worker benchmark starts as processes of their own; each reads BENCH_BROKER_URI."""
