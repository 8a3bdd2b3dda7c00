"""The look of the report page, and the script that sorts its table."""

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c2430, #e6e9ee); --quiet: light-dark(#5b6675, #98a3b3);
  --paper: light-dark(#ffffff, #12161c); --panel: light-dark(#f5f7fa, #1a2029); --line: light-dark(#dde3ea, #2c3542);
  --accent: light-dark(#1d4ed8, #7aa7ff); --good: light-dark(#08723f, #4ade80); --bad: light-dark(#b42318, #ff8a80); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; }
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
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .7rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  font-weight: 600; }
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
details { margin-top: .8rem; border: 1px solid var(--line); border-radius: .7rem; padding: .7rem 1rem; } details
  .wide { border: 0; }
summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; font-size: .82rem; line-height: 1.45; }
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
"""
