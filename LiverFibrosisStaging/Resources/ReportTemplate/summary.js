"use strict";

// Sorting and filtering of the table of cases. Without it the page shows all cases in the order of
// results.csv.
(() => {
  const table = document.getElementById("cases");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter");
  const found = document.getElementById("found");
  const order = new Intl.Collator(undefined, { numeric: true });
  const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));

  // The value of a cell: a number, or its text; null if there is none.
  function value(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value) return Number(cell.dataset.value);
    return "value" in cell.dataset ? null : cell.textContent.trim() || null;
  }

  // Missing values are last in both directions; cases with the same value keep their order.
  function sort(column, sign) {
    const keyed = rows.map((each) => ({ each, key: value(each.row, column) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return sign * (typeof a.key === "number" ? a.key - b.key : order.compare(a.key, b.key));
    });
    body.append(...keyed.map(({ each }) => each.row));
  }

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(column, ascending ? 1 : -1);
    });
  });

  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { row, text } of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      count += !row.hidden;
    }
    found.textContent = `${count} of ${rows.length}`;
  });
  document.getElementById("finding").hidden = false;
})();
