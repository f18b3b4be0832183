"""The custom resources TaskQueue and Task as pydantic models, the one source of ``crds/*.yaml``.

``taskqueue.py`` and ``task.py`` hold the resources, with parts of them in the files named after
them; ``common.py`` holds what both share. ``crds.py`` turns the models into
CustomResourceDefinitions, ``reference.py`` into ``docs/reference/api.md``. Nothing here knows the
other packages of taskqueue.
"""
