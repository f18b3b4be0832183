"""Thumbnails of photographs: a worker (`thumbnails.py`) and the demo that drives it (`demo.py`)."""
