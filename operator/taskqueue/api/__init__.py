"""The custom resources as pydantic models, the only source of ``crds/*.yaml``.

``taskqueue.py``, ``task.py`` and ``taskschedule.py`` have the resources, with parts of them in the
files named after them; ``common.py`` has what they share. ``crds.py`` generates the
CustomResourceDefinitions, ``reference.py`` generates ``docs/reference/api.md``. Nothing here
imports the other packages of taskqueue.
"""
