"""Tasks, one file each: which questions are asked about which videos, and when an answer is right."""

from importlib import import_module
from pkgutil import iter_modules

from langdc.evaluate.tasks.base import Task, build_task, tasks

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

build = tasks.build

__all__ = ["Task", "build", "build_task", "tasks"]
