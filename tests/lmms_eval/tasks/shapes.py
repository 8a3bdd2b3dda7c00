"""A task of lmms-eval: questions about videos, pictures, several of them, or nothing, each with a one-word answer."""

from PIL import Image


def doc_to_visual(doc: dict) -> list | None:
    """Videos by their path, pictures from memory, as tasks of lmms-eval give them."""
    shown = [Image.open(name) if name.endswith(".png") else name for name in doc["shown"]]
    return shown or None


def doc_to_text(doc: dict) -> str:
    return doc["question"]


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    return {"right": float(results[0].strip().lower() == doc["answer"])}
