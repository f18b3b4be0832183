"""The custom resources TaskQueue and Task as pydantic models, the only source of ``crds/*.yaml``.

``taskqueue.py`` and ``task.py`` have the resources, with parts of them in the files named after
them; ``common.py`` has what both share. ``crds.py`` generates the CustomResourceDefinitions,
``reference.py`` generates ``docs/reference/api.md``. Nothing here imports the other packages of
taskqueue.
"""
