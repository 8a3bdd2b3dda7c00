"""The zoo of tasks: which questions are asked about which videos, and when an answer is right."""

from langdc.evaluation.tasks import (
    egoschema,
    longvideobench,
    lvbench,
    mlvu,
    mvbench,
    open_ended,
    sample,
    videomme,
    vsibench,
)
from langdc.evaluation.tasks.base import Task, tasks

build = tasks.build

__all__ = [
    "Task",
    "build",
    "egoschema",
    "longvideobench",
    "lvbench",
    "mlvu",
    "mvbench",
    "open_ended",
    "sample",
    "tasks",
    "videomme",
    "vsibench",
]
