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
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const item of items) {
      const text = item.textContent.toLowerCase();
      item.hidden = !words.every(word => text.includes(word));
    }
    const shown = items.filter(item => !item.hidden).length;
    count.textContent = words.length ? `${shown} of ${items.length}` : "";
  });
}
