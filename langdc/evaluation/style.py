"""The look of the report page, and the script that sorts and filters its tables."""

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c2430, #e6e9ee); --quiet: light-dark(#5b6675, #98a3b3);
  --paper: light-dark(#ffffff, #12161c); --panel: light-dark(#f5f7fa, #1a2029); --line: light-dark(#dde3ea, #2c3542);
  --accent: light-dark(#1d4ed8, #7aa7ff); --good: light-dark(#08723f, #4ade80); --bad: light-dark(#b42318, #ff8a80); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 92rem; margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; }
h1 { font-size: clamp(1.5rem, 3.2vw, 2.3rem); line-height: 1.2; letter-spacing: -.02em; margin: .2rem 0 .6rem;
  text-wrap: balance; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 0 0 .3rem; }
section { margin-top: 3rem; } section > p { max-width: 46rem; color: var(--quiet); margin: 0 0 1rem; }
.kicker { color: var(--accent); font-weight: 650; font-size: .85rem; letter-spacing: .06em; text-transform:
  uppercase; margin: 0; }
.quiet, small { color: var(--quiet); } small { font-size: .82em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin-top: 1.4rem; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: .7rem; padding: .8rem 1rem; }
.card strong { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; letter-spacing: -.02em; }
.card span { color: var(--quiet); font-size: .85rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: 1.6rem; font-size: .9rem; }
nav a { color: var(--accent); text-decoration: none; } nav a:hover { text-decoration: underline; }
.wide { overflow: auto; max-height: 80vh; border: 1px solid var(--line); border-radius: .7rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  font-weight: 600; }
thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
thead th:first-child { z-index: 2; }
.cases { list-style: none; padding: 0; margin: .7rem 0 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
.cases li { display: flex; gap: .8rem; } .cases img { width: 8rem; height: 8rem; object-fit: contain; flex: none;
  background: var(--panel); border-radius: .4rem; } .cases p { margin: .1rem 0; }
details td:first-child { position: static; font-weight: 400; }
th { color: var(--quiet); font-weight: 600; } tbody tr:last-child td { border-bottom: 0; } tbody tr:hover td {
  background: var(--panel); }
tfoot td { color: var(--quiet); border-top: 2px solid var(--line); border-bottom: 0; font-weight: 400; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th button:hover, th button:focus-visible { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
.better { color: var(--good); } .worse { color: var(--bad); }
figure { margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: .7rem; padding:
  1rem; overflow-x: auto; }
figure svg { width: 100%; height: auto; display: block; min-width: 22rem; } figcaption { color: var(--quiet);
  font-size: .88rem; margin-top: .4rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
.stack { display: grid; gap: 1rem; max-width: 66rem; } .wide + p, .filtered + p, .grid + p { margin: .8rem 0; }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem; }
.filtered label { display: flex; gap: .8rem; align-items: baseline; margin-bottom: .6rem; }
.filtered input { font: inherit; font-size: .88rem; color: inherit; background: var(--panel); width: min(24rem, 100%);
  border: 1px solid var(--line); border-radius: .5rem; padding: .35rem .7rem; }
.filtered input:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.filtered output { color: var(--quiet); font-size: .82rem; } [hidden] { display: none; }
.told td { text-align: left; } .told td:last-child { white-space: normal; min-width: 20rem; }
.told th { text-align: left; }
.cite { list-style: none; padding: 0; margin: 0; display: grid; gap: .5rem; }
.cite code { display: block; background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding:
  .5rem .8rem; font-size: .78rem; overflow-wrap: anywhere; user-select: all; }
details { margin-top: .8rem; border: 1px solid var(--line); border-radius: .7rem; padding: .7rem 1rem; } details
  .wide { border: 0; }
details p { max-width: 46rem; color: var(--quiet); margin: .5rem 0; font-size: .9rem; }
summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; font-size: .82rem; line-height: 1.45; }
.share { background: linear-gradient(90deg, color-mix(in srgb, var(--accent) 22%, transparent)
  calc(var(--share) * 100%), transparent 0); }
.bars { list-style: none; padding: 0; margin: .7rem 0; } .bars li { display: grid; grid-template-columns: 8rem
  2rem auto 1fr; gap: .6rem; align-items: center; }
.bar { height: .7rem; border-radius: .35rem; background: linear-gradient(90deg, var(--accent) calc(var(--share)
  * 100%), var(--line) 0); }
.bars b { text-align: right; font-variant-numeric: tabular-nums; } q { quotes: none; }
@media (max-width: 40rem) { .bars li { grid-template-columns: 4rem 2rem 1fr; } .bars small { grid-column: 3; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const number = x - y, by = Number.isNaN(number) ? x.localeCompare(y) : number;
      return up ? by : -by;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
for (const part of document.querySelectorAll(".filtered")) {
  const box = part.querySelector("input"), count = part.querySelector("output");
  const items = [...part.querySelectorAll("tbody tr, li")];
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const item of items) {
      const text = item.textContent.toLowerCase();
      item.hidden = !words.every(word => text.includes(word));
    }
    const shown = items.filter(item => !item.hidden).length;
    count.textContent = words.length ? `${shown} of ${items.length}` : "";
  });
}
"""
