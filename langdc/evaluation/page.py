"""The report as one HTML file that needs nothing else: style, script and plots are in it."""

import json
import re
from collections.abc import Callable, Sequence
from html import escape

import yaml

from langdc import plots
from langdc.evaluation.adaptive import Pictures
from langdc.evaluation.notes import notes
from langdc.evaluation.report import APART, Cell, marked, split, table
from langdc.evaluation.rows import Row, score
from langdc.evaluation.sections import (
    adaptive_budgets,
    against_costs,
    citations,
    failures,
    figure,
    filtered,
    quoted,
    section,
    stages,
)
from langdc.evaluation.style import SCRIPT, STYLE

EXAMPLES = 6
TABLE = (
    "Better, worse and not distinguishable go by p values after Holm's correction over all rows compared. The interval "
    "beside a difference is the row's own, 95 % and not corrected, so one without 0 may stand beside not "
    "distinguishable. Click a column to sort."
)
COLUMNS = (
    "Accuracy is the mean score over the target kinds; its interval treats videos as what was sampled. Differences are "
    "paired over the same questions, with a bootstrap over videos.",
    "Videos to see 1 point: how many it takes to find a difference of one point in 80 of 100 tries (two-sided, 5 %), "
    "judged by how much this row's difference varies from video to video.",
    "Time to the first token: a video alone, warm, median; decoding and encoding are measured once per video and "
    "charged to every row. FLOPs: one question about one video. KV bytes: what the language model's cache held when a "
    "reply began.",
    "Budget: what a row took, as a share of the row it should match; equal means within 2 %, and budgets were set on "
    "other videos. Failed questions got no answer, and in unparsed replies none was found; both score 0.",
)


def page(rows: Sequence[Row], pictures: Callable[[Row], Pictures] | None = None) -> str:
    """The whole page. `pictures`: frames of a row's videos; without, cases are told in words alone."""
    figures = [_tables(rows), against_costs(rows), stages(rows), _kinds(rows), adaptive_budgets(rows, pictures)]
    rest = [_captions(rows), _examples(rows), failures(rows), _meaning(rows), citations(rows), _settings(rows)]
    parts = "\n".join(part for part in [_remarks(rows), *figures, *rest] if part)
    body = f"{_head(rows)}\n{_contents(parts)}\n{parts}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark"><title>LangDC evaluation</title>\n'
        f"<style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def _contents(parts: str) -> str:
    """Links to the sections."""
    found = re.findall(r"<section id=(\S+)><h2>(.*?)</h2>", parts)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in found)
    return f"<nav>{links}</nav>"


def _remarks(rows: Sequence[Row]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes(rows))
    return section("To know first", "", f"<ul>{items}</ul>") if items else ""


def _head(rows: Sequence[Row]) -> str:
    session = rows[0].header["sessions"][-1]
    machine = f"{session['gpu'] or session['cpu']}, {session['cores']} cores"
    when = session["started"][:10]
    cards = "".join(
        f"<div class=card><strong>{escape(value)}</strong><span>{escape(label)}</span></div>"
        for value, label in _facts(rows)
    )
    return (
        f"<header><p class=kicker>LangDC evaluation</p><h1>{escape(_headline(rows))}</h1>"
        f"<p class=quiet>{escape(when)} · {escape(machine)} · code {escape((session['commit'] or 'unknown')[:10])}</p>"
        f"<div class=cards>{cards}</div></header>"
    )


def _headline(rows: Sequence[Row]) -> str:
    # a row apart, or asked about other videos, is ahead of nobody
    answered = [row for row in rows if row.accuracy is not None and not row.apart and not row.settings.get("limit")]
    if not answered:
        return "No question has been answered yet."
    best = max(answered, key=lambda row: row.accuracy.value if row.accuracy else 0)
    assert best.accuracy is not None
    name = best.name + (f" ({mark})" if (mark := marked(best)) else "")
    tokens = f" at {best.tokens.value:.0f} video tokens" if best.tokens else ""
    reference = next((row for row in answered if row.difference is None), best)
    if best.difference is not None and best.difference.verdict != "better":
        share = f"{100 * best.accuracy.value:.1f} % of the target questions{tokens}"
        return f"{name} answers {share}, and {reference.name} cannot be told apart from it"
    return f"{name} is ahead: {100 * best.accuracy.value:.1f} % of the target questions{tokens}"


def _facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    most = max(rows, key=lambda row: len(row.answers))
    facts = [
        (str(len({line["video"] for line in most.answers})), "videos"),
        (str(len(most.answers)), "questions per row"),
        (str(len(rows)), "rows"),
        (f"{100 * most.target_chance:.1f} %", "majority answer on target kinds"),
        (str(sum(row.failed for row in rows)), "failed answers, counted as wrong"),
        (str(sum(len(row.unparsed) for row in rows)), "unparsed answers, counted as wrong"),
    ]
    captioned = next((row for row in rows if row.exact_captions.n), None)
    if captioned is not None:
        share = captioned.exact_captions
        facts.insert(3, (f"{100 * share.value:.1f} %", f"captions exact, of {share.n} ({captioned.name})"))
    return facts


def _tables(rows: Sequence[Row]) -> str:
    equal, apart = split(rows)
    told = "".join(f"<p>{escape(text)}</p>" for text in COLUMNS)
    legend = f"<details><summary>What the columns say</summary>{told}</details>"
    parts = [section("All rows" if not apart else "Rows", TABLE, _table(equal) + legend)] if equal else []
    return "\n".join([*parts, section("Not at an equal budget", APART, _table(apart))] if apart else parts)


def _table(rows: Sequence[Row]) -> str:
    titles, lines = table(rows)
    head = "".join(f"<th><button>{escape(title.replace('_', ' '))}</button></th>" for title in titles)
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines[:-1])
    foot = "".join(f"<td>{escape(cell.text)}</td>" for cell in lines[-1])
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody><tfoot><tr>{foot}</tr></tfoot>"
    return filtered(f"<div class=wide><table class=sortable>{inside}</table></div>")


def _cell(cell: Cell) -> str:
    verdict = next((word for word in ("better", "worse") if cell.text.endswith(f": {word}")), "")
    value = "" if cell.value is None else escape(str(cell.value))
    return f'<td data-value="{value}" class="{verdict}">{escape(cell.text)}</td>'


def _kinds(rows: Sequence[Row]) -> str:
    longest = max(rows, key=lambda row: len(row.kinds))
    kinds = list(longest.kinds)
    shown = [(number, row) for number, row in enumerate(rows) if row.answers]
    if not kinds:
        return ""
    values = {row.name: [row.kinds[k].value if k in row.kinds else 0.0 for k in kinds] for _, row in shown}
    chance = [longest.chance[kind] for kind in kinds]
    target = ", ".join(kind.replace("_", " ") for kind in longest.header["target_kinds"])
    if len(shown) > len(plots.PALETTE):
        text = f"Accuracy in percent, the fuller the bar the higher. The target kinds are {escape(target)}."
        return section("By kind of question", text, _shares(kinds, values, chance))
    drawn = plots.kind_bars(kinds, values, chance, [number for number, _ in shown])
    text = f"Dotted: always giving the most frequent answer of the kind. The target kinds are {escape(target)}."
    return section("By kind of question", text, figure(drawn))


def _shares(kinds: Sequence[str], values: dict[str, list[float]], chance: Sequence[float]) -> str:
    """Accuracies by kind as a table of bars, for more rows than a plot can hold."""
    head = "".join(f"<th>{escape(kind.replace('_', ' '))}</th>" for kind in kinds)
    lines = {**values, "majority answer": list(chance)}
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td class=share style='--share:{share:.3f}'>{100 * share:.1f}</td>" for share in shares)
        + "</tr>"
        for name, shares in lines.items()
    )
    table = f"<table><thead><tr><th>row</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return filtered(f"<div class=wide>{table}</div>")


def _captions(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row.exact_captions.n]
    if not shown:
        return ""
    levels = sorted({density for row in shown for density in row.captions})
    head = "".join(f"<th>density {level}</th>" for level in levels)
    lines = []
    for row in shown:
        shares = [row.captions.get(level) for level in levels]
        cells = "".join(
            f"<td>{100 * s.value:.1f} % <small>of {s.n}</small></td>" if s else "<td>-</td>" for s in shares
        )
        total = row.exact_captions
        every = f"<td><strong>{100 * total.value:.1f} %</strong> <small>of {total.n}</small></td>"
        lines.append(f"<tr><td>{escape(row.name)}</td>{every}{cells}</tr>")
    html = f"<table><thead><tr><th>row</th><th>all</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    text = "Share of segments whose written caption is, word for word, the record's."
    return section("Captions", text, f"<div class=wide>{html}</div>")


def _examples(rows: Sequence[Row]) -> str:
    captioned = next((row for row in rows if row.exact_captions.n), rows[0])
    shown = captioned.videos[:EXAMPLES]
    if not shown:
        return ""
    most = max((count for video in shown for count in video["segment_tokens"]), default=1)
    html = "".join(_example(video, captioned, rows, most) for video in shown)
    text = (
        f"The first {len(shown)} videos. Captions and bars (tokens per segment) are those of {escape(captioned.name)}."
    )
    return section("Examples", text, html)


def _example(video: dict, captioned: Row, rows: Sequence[Row], most: int) -> str:
    captions = video["captions"] or [None] * len(video["segment_tokens"])
    targets = video["targets"] if len(video["targets"]) == len(captions) else [None] * len(captions)
    bars = "".join(
        f"<li><i class=bar style='--share:{count / max(most, 1):.3f}'></i><b>{count}</b>{quoted(said, target)}</li>"
        for count, said, target in zip(video["segment_tokens"], captions, targets, strict=True)
    )
    asked = [line for line in captioned.answers if line["video"] == video["video"]]
    names = "".join(f"<th>{escape(row.name)}</th>" for row in rows)
    by_key = [{line["key"]: line for line in row.answers} for row in rows]
    lines = "".join(
        f"<tr><td>{escape(line['question'])}</td><td>{escape(line['expected'])}</td>"
        f"{''.join(_reply(found.get(line['key'])) for found in by_key)}</tr>"
        for line in asked
    )
    head = f"<thead><tr><th>question</th><th>answer</th>{names}</tr></thead>"
    return (
        f"<details open><summary>{escape(video['video'])} · {video['tokens']} tokens</summary>"
        f"<ol class=bars>{bars}</ol>"
        f"<div class=wide><table>{head}<tbody>{lines}</tbody></table></div></details>"
    )


def _reply(line: dict | None) -> str:
    if line is None:
        return "<td>-</td>"
    if line["failed"]:
        return f'<td class=worse title="{escape(line["reason"] or "")}">failed</td>'
    right = "better" if line["correct"] else "worse"
    worth = score(line)
    mark = f"{worth:.2f}" if 0 < worth < 1 else "✓" if worth else "✗"
    return f"<td class={right}>{mark} {escape(line['answer'])}</td>"


def _meaning(rows: Sequence[Row]) -> str:
    text = (
        "These figures compare ways of shortening a video for one language model, on one task, with weights trained as "
        "the table says. An interval says how far a figure may move with other videos of the same kind; it does not "
        "cover other training seeds. Models with random weights, and runs on few videos, test the machinery and claim "
        "no quality."
    )
    sample = any(row.header["config"]["task"]["name"] == "sample" for row in rows)
    more = (
        " The sample set is made up: simple shapes, captions that list them, questions that a caption answers. There "
        "the length of a right caption follows the number of objects by construction, so tokens that follow density "
        "show that the captioner learned its task, not that real videos behave so; and a ranking here says nothing "
        "about real videos."
    )
    return section("What this shows, and what not", text + (more if sample else ""), "")


def _settings(rows: Sequence[Row]) -> str:
    headers = list({id(row.header): row.header for row in rows}.values())
    parts = []
    for header in headers:
        config = yaml.safe_dump(header["config"], sort_keys=False, allow_unicode=True)
        rest = json.dumps(
            {key: value for key, value in header.items() if key != "config"}, indent=1, ensure_ascii=False
        )
        parts.append(f"<details><summary>Settings</summary><pre>{escape(config)}</pre></details>")
        parts.append(
            f"<details><summary>Machine, packages, hashes, training</summary><pre>{escape(rest)}</pre></details>"
        )
    return section("How it was made", "All settings, versions and hashes, as kept in the run's header.", "".join(parts))
