"""A listener on taskqueue.events, to copy: see README.md."""
