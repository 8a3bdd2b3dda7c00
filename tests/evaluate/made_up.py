"""Run folders with answers made up, so that figures are known."""

from pathlib import Path

from langdc.evaluate.folder import EvalFolder

KINDS = ("count", "shape")


def write(folder: Path, rows: dict[str, dict], videos: int = 20, reference: str | None = None) -> Path:
    """`rows`: by name, {"right": questions answered right out of two per video, "tokens": of a density}.

    Optional: "compressor", its settings; "budget", how near it came to another row's; "limit", how many videos it is
    asked about; "scored", by (video, question) the score of a reply, None where it cannot be parsed; "timings", lines
    in place of the one; "repeats", the row that it is another run of; "flops" of its training.
    """
    same = {"model": "m", "control": None, "match": None}
    settings = [
        {"name": name, **same, "compressor": row.get("compressor"), "limit": row.get("limit")}
        for name, row in rows.items()
    ]
    for row, entry in zip(rows.values(), settings, strict=True):
        entry |= {"repeats": row["repeats"]} if "repeats" in row else {}
    config = {"task": {"name": "sample"}, "entries": settings, "reference": reference}
    same = {"samples": 1000, "steps": 50, "complete": True}
    training = {name: {**same, "flops": row.get("flops", 2.5e12)} for name, row in rows.items()}
    info = {"target_kinds": ["count"], "training": training, "entries": settings}
    run = EvalFolder.start(folder, {"config": config}, info, ["made", "up"])
    for name, row in rows.items():
        out = run.entry_file(name)
        for number in range(row.get("limit", videos)):
            out.append(_video(f"v{number:02}", number, row))
        out.append(row.get("timings") or [_timing(row)])
        if "budget" in row:
            out.append([{"type": "budget", "key": "budget", **row["budget"]}])
        if row.get("finished", True):
            out.append([{"type": "finished", "key": "finished"}])
    return folder


def _video(name: str, number: int, row: dict) -> list[dict]:
    densities = [number % 3, (number + 1) % 3]
    counts = [row["tokens"](density) for density in densities]
    targets = ["red square left"] * 2
    captions = ["red  square left", "blue <ring>"] if row.get("captions") else None
    about = {"tokens": sum(counts), "segment_tokens": counts, "densities": densities, "targets": targets}
    lines: list[dict] = [{"type": "video", "key": f"video/{name}", "video": name, **about, "captions": captions}]
    lines[0]["cue_recall"] = [1.0, None] if captions else None
    for place, kind in enumerate(KINDS):
        right = 2 * number + place < row["right"]
        failed = row.get("failed") == (number, place)
        lines.append({
            "type": "answer", "key": f"{name}/{place}", "video": name, "number": place, "kind": kind,
            "question": f"{kind} & <what> ?", "expected": "1" if number % 4 else "2", "correct": right and not failed,
            "score": float(right and not failed),
            "answer": None if failed else "1", "failed": failed, "reason": "broken" if failed else None,
            "tokens": sum(counts), "kv_bytes": 100 * sum(counts),
            "flops": None if failed else {"encode": 1e9, "prefill": 2e9},
        })  # fmt: skip
        if "scored" in row:
            worth = row["scored"].get((number, place), float(right and not failed))
            parsed = None if failed or worth is None else "1"
            lines[-1] |= {"parsed": parsed, "score": worth or 0.0, "correct": worth == 1}
    return lines


def _timing(row: dict) -> dict:
    seconds = {"decode": 0.01, "encode": 0.02, "compress": 0.0, "prefill": row.get("prefill", 0.005), "generate": 1.0}
    return {"type": "timing", "key": "timing/v00", "video": "v00", "warm": True, "seconds": seconds}
