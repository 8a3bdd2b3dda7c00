"""What a task is."""

from abc import ABC, abstractmethod
from pathlib import Path

from langdc.data.records import Record
from langdc.registry import Registry

tasks: Registry["Task"] = Registry("task")


class Task(ABC):
    """Videos with questions. `target_kinds` are those that the headline accuracy is made of."""

    records: list[Record]
    target_kinds: tuple[str, ...]

    @abstractmethod
    def path(self, record: Record) -> Path:
        """The video or image of a record."""

    @abstractmethod
    def correct(self, expected: str, text: str) -> bool:
        """Whether a reply is right."""

    @abstractmethod
    def data_hash(self) -> str:
        """The sha256 of what is asked."""
