"""Sections of the report page about cost, failures and where a figure comes from; and what all sections are made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from statistics import median

from langdc import plots
from langdc.evaluation.adaptive import Adaptive, Case, Measure, Pictures, adaptive
from langdc.evaluation.cost import loop_cost
from langdc.evaluation.report import citation, quantity
from langdc.evaluation.rows import Row

LISTED = 100
EXAMPLES = 5
PLOTTED = 3
"""So many rows that adapt are drawn where none writes captions."""
STAGES = {
    "read": "read features",
    "decode": "decode",
    "preprocess": "preprocess",
    "encode": "encode",
    "saliency": "encoder attention",
    "compress": "compress",
    "prefill": "prefill",
    "generate": "generate",
    "first_token": "to first token",
    "total": "end to end",
    "without_llm": "end to end if the LLM were free",
}
"""Stages in their order with their headings; others follow."""


def section(title: str, text: str, body: str) -> str:
    """A part of the page; `text` and `body` are HTML."""
    name = "-".join(title.lower().split())
    return f"<section id={name}><h2>{escape(title)}</h2><p>{text}</p>\n{body}</section>"


def figure(svg: str, caption: str = "") -> str:
    """A plot in its frame."""
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{told}</figure>"


def quoted(said: str | None, target: str | None) -> str:
    """A caption, with the record's beside it where that is another; nothing where none was written."""
    if said is None:
        return ""
    shown = escape(said) or "<i>nothing</i>"
    if target is None or said.split() == target.split():
        return f"<q>{shown}</q>"
    return f"<q class=worse>{shown}</q> <small>record: {escape(target) or '<i>nothing</i>'}</small>"


def filtered(body: str) -> str:
    """A table or list under a box that leaves only what holds the words typed there."""
    box = '<input type="search" placeholder="Filter: words, all of which must occur" aria-label="Filter">'
    return f"<div class=filtered><label>{box} <output></output></label>{body}</div>"


def plain_table(titles: Iterable[str], lines: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of texts; `kind` is its class."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>" for line in lines)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class=wide><table class="{kind}">{inside}</table></div>'


def against_costs(rows: Sequence[Row]) -> str:
    """Accuracy against tokens, time to the first token and memory, each with its Pareto front."""
    costs = {
        "video tokens the language model reads, mean per video": [_tokens(row) for row in rows],
        "milliseconds to the first token, median": [_first_token(row) for row in rows],
        "bytes that the KV cache holds when a reply begins, mean": [row.kv_bytes for row in rows],
        "bytes of accelerator memory, peak": [row.peak_bytes for row in rows],
    }
    fronts = {cost: _front(rows, spent) for cost, spent in costs.items()}
    numbers = _coloured(rows, fronts.values())
    figures = [_against(rows, cost, costs[cost], fronts[cost], numbers) for cost in costs]
    if not any(figures):
        return ""
    text = (
        "Bars are 95 % intervals. Up and to the left is better. The line is the Pareto front: no other row is at least "
        "as accurate for no more. It goes by the figures alone, so two neighbours on it may not be distinguishable. "
        "Rows asked about fewer videos are drawn and never on it."
    )
    if len(numbers) < len(rows):
        text += " Of so many rows, those on a front and the reference are coloured and named."
    return section("Accuracy against cost", text, f"<div class=stack>{''.join(figures)}</div>")


def _front(rows: Sequence[Row], costs: Sequence[float]) -> list[int]:
    """The numbers of the rows on the Pareto front of a cost, of those that were asked about all videos."""
    whole = [n for n, row in enumerate(rows) if _drawn(row, costs[n]) and not row.settings.get("limit")]
    values = [row.accuracy.value if row.accuracy is not None else 0.0 for row in (rows[n] for n in whole)]
    return [whole[place] for place in plots.front([costs[n] for n in whole], values)]


def _drawn(row: Row, cost: float) -> bool:
    """Whether a row is on a plot: rows whose cost is not known, or nothing, are not."""
    return cost > 0 and row.accuracy is not None


def _coloured(rows: Sequence[Row], fronts: Iterable[Sequence[int]]) -> dict[int, int]:
    """The rows that have a colour, and which: all where there are as many colours, else those worth pointing out."""
    if len(rows) <= len(plots.PALETTE):
        return {number: number for number in range(len(rows))}
    reference = [number for number, row in enumerate(rows) if row.difference is None and row.accuracy is not None]
    named = dict.fromkeys([*reference[:1], *(number for front in fronts for number in front)])
    return {number: place for place, number in enumerate(named)}


def _tokens(row: Row) -> float:
    return row.tokens.value if row.tokens is not None else 0.0


def _first_token(row: Row) -> float:
    return 1000 * row.seconds.get("first_token", 0.0)


def _against(
    rows: Sequence[Row], cost: str, costs: Sequence[float], front: Sequence[int], numbers: Mapping[int, int]
) -> str:
    """One of these plots. `front`: numbers of rows; `numbers`: the colours of those that have one."""
    points = {
        number: plots.Point(row.name, numbers.get(number), spent, found.value, found.low, found.high)
        for number, (row, spent) in enumerate(zip(rows, costs, strict=True))
        if _drawn(row, spent) and (found := row.accuracy) is not None
    }
    if not points:
        return ""
    ahead = [points[number] for number in front]
    named = f"On the front, cheapest first: {', '.join(point.name for point in ahead)}." if ahead else ""
    chance = rows[next(iter(points))].target_chance
    return figure(plots.accuracy_against(cost, list(points.values()), ahead, chance), named)


def stages(rows: Sequence[Row]) -> str:
    """Median and p95 of every stage's seconds."""
    timed = [row for row in rows if row.stages]
    if not timed:
        return ""
    found = {stage for row in timed for stage in row.stages}
    names = [*(stage for stage in STAGES if stage in found), *sorted(found - set(STAGES))]
    titles = ["row", *(STAGES.get(stage, stage) for stage in names), "tokens/s", "peak memory", "videos timed"]
    lines = [
        [row.name, *(_milliseconds(row, stage) for stage in names), _rate(row), _memory(row), str(_timed(row))]
        for row in timed
    ]
    fewest = min(map(_timed, timed))
    text = (
        "Milliseconds, median / 95th percentile, of one video alone with one question, warm-up left out. The sums are "
        f"taken per video, so their medians are not the sums of the medians. {_thin(fewest)}Tokens/s: of the reply "
        "after its first token."
    )
    loops = list(dict.fromkeys(str(cost) for row in rows if (cost := loop_cost(row.sessions)) is not None))
    told = "".join(f"<p class=quiet>{escape(cost)}</p>" for cost in loops)
    return section("Cost per stage", text, filtered(plain_table(titles, lines)) + told)


def _thin(videos: int) -> str:
    most = f"With {videos} video{'s' * (videos > 1)} timed, a 95th percentile is little more than the slowest. "
    return most if videos < 20 else ""


def _timed(row: Row) -> int:
    return row.stages["total"].n


def _milliseconds(row: Row, stage: str) -> str:
    spread = row.stages.get(stage)
    return "-" if spread is None else f"{1000 * spread.median:.1f} / {1000 * spread.p95:.1f}"


def _rate(row: Row) -> str:
    rate = row.tokens_per_second
    return "-" if rate != rate else f"{rate:.1f}"


def _memory(row: Row) -> str:
    return "-" if row.peak_bytes != row.peak_bytes else f"{quantity(row.peak_bytes)}B"


def adaptive_budgets(rows: Sequence[Row], pictures: Callable[[Row], Pictures] | None = None) -> str:
    """Where the tokens of rows went whose segments get different numbers of them; `pictures` show frames of a run."""
    found = [(number, one) for number, row in enumerate(rows) if (one := adaptive(row)) is not None]
    if not found:
        return ""
    writers = [pair for pair in found if any(video.get("captions") for video in pair[1].videos)]
    shown = writers or found[:PLOTTED]
    text = (
        "Rows that give one segment more tokens than another, and how well that follows what there is to see: "
        "Spearman's rho with a 95 % interval by a bootstrap over videos. Density is what the records say; where they "
        "say nothing, motion (mean change of grey levels from frame to frame) and edge entropy (bits, of how steep "
        "grey levels are) stand in, and follow content only roughly."
    )
    left = "" if len(shown) == len(found) else f"<p class=quiet>Drawn below: {_listed(shown)}.</p>"
    body = _correlations([one for _, one in found]) + left
    for number, one in shown:
        drawn = "".join(_calibration(one, number, measure) for measure in one.measures)
        body += f"<h3>{escape(one.row.name)}</h3><div class=grid>{drawn}</div>"
        body += _cases(one, pictures(one.row) if pictures is not None else None)
    return section("Adaptive budgets", text, body)


def _listed(shown: Sequence[tuple[int, Adaptive]]) -> str:
    return ", ".join(escape(one.row.name) for _, one in shown)


def _correlations(found: Sequence[Adaptive]) -> str:
    names = list(dict.fromkeys(measure.name for one in found for measure in one.measures))
    lines = []
    for one in found:
        rho = {measure.name: measure.rho for measure in one.measures}
        told = [f"{rho[n].value:.3f} ({rho[n].low:.3f} to {rho[n].high:.3f})" if n in rho else "-" for n in names]
        spread = " / ".join(f"{part:g}" for part in (min(one.tokens), median(one.tokens), max(one.tokens)))
        lines.append([one.row.name, *told, spread, str(len(one.tokens)), str(len(one.videos))])
    spread = "tokens per segment: least / median / most"
    return plain_table(["row", *(f"rho with {name}" for name in names), spread, "segments", "videos"], lines)


def _calibration(one: Adaptive, number: int, measure: Measure) -> str:
    means = [(b.richness, b.tokens.value, b.tokens.low, b.tokens.high) for b in measure.bins]
    drawn = plots.calibration(one.row.name, number, measure.name, (measure.values, one.tokens), means)
    told = f"Spearman rho = {measure.rho.value:.3f} over {len(one.tokens)} segments"
    return figure(drawn, f"{one.row.name}: {told}. Line: means, with 95 % intervals.")


def _cases(one: Adaptive, pictures: Pictures | None) -> str:
    parts = []
    for title, worst in (("Where tokens follow richness best", False), ("Where they follow it least", True)):
        cards = "".join(_case(case, pictures) for case in one.cases(worst))
        parts.append(f"<details><summary>{title}</summary><ul class=cases>{cards}</ul></details>")
    lacking = ""
    if pictures is not None and pictures.missing:
        lacking = f"<p class=quiet>Not all frames could be read: {escape(pictures.missing)}</p>"
    note = (
        "<p class=quiet>Segments by the gap between their rank by tokens and their rank by richness, in percent of all "
        "segments; + means more tokens than richness asks for. At most one of each video.</p>"
    )
    return note + "".join(parts) + lacking


def _case(case: Case, pictures: Pictures | None) -> str:
    picture = pictures.of(case) if pictures is not None else None
    seen = f'<img src="{picture}" alt="">' if picture else ""
    rich = ", ".join(f"{name} {value:.3g}" for name, value in case.richness.items())
    place = f"{escape(case.video)}, segment {case.segment + 1} of {case.segments}"
    told = f"<b>{case.tokens} tokens</b>, {rich}, gap {100 * case.gap:+.0f} %"
    return f"<li>{seen}<div><small>{place}</small><p>{told}</p>{quoted(case.caption, case.target)}</div></li>"


def failures(rows: Sequence[Row]) -> str:
    """Which samples failed and why, and, apart from them, replies in which no answer was found."""
    answered = [row for row in rows if row.answers]
    if not answered:
        return ""
    failed, unparsed = _failed(answered), [row for row in answered if row.unparsed]
    if not failed and not unparsed:
        return section("Failures", "Every question was answered, and every reply could be read.", "")
    text = (
        "A question that failed got no answer; an unparsed reply came but says nothing that counts as an answer. Both "
        "score 0 and stay in the accuracy."
    )
    parts = []
    if failed:
        table = plain_table(["row", "video", "questions", "why"], failed[:LISTED], "told")
        parts.append(f"<h3>Failed</h3>{filtered(table)}{_more(len(failed))}")
    if unparsed:
        lines = [_unparsed(row) for row in unparsed]
        parts.append(f"<h3>Unparsed</h3>{plain_table(['row', 'replies', 'share', 'for example'], lines, 'told')}")
    return section("Failures", text, "".join(parts))


def _failed(rows: Sequence[Row]) -> list[list[str]]:
    """One line per row, video and reason, with how many questions it took."""
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows:
        for line in row.failures:
            what = (row.name, line["video"], line["reason"] or "no reason given")
            counts[what] = counts.get(what, 0) + 1
    return [[row, video, str(count), reason] for (row, video, reason), count in counts.items()]


def _more(lines: int) -> str:
    return f"<p class=quiet>and {lines - LISTED} more, in the rows' files.</p>" if lines > LISTED else ""


def _unparsed(row: Row) -> list[str]:
    shown = " · ".join(f"{line['key']}: “{(line['answer'] or '')[:60]}”" for line in row.unparsed[:EXAMPLES])
    share = f"{100 * len(row.unparsed) / len(row.answers):.1f} %"
    return [row.name, str(len(row.unparsed)), share, shown]


def citations(rows: Sequence[Row]) -> str:
    """One line per row to copy."""
    items = "".join(f"<li><code>{escape(citation(row))}</code></li>" for row in rows)
    text = (
        "What to quote beside a figure, so that others can check it. A + after a commit: files differed from it. Of "
        "hashes only the beginning is given; the table as CSV has all of them."
    )
    return section("Cite a row", text, filtered(f"<ul class=cite>{items}</ul>"))
