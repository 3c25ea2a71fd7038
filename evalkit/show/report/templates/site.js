// The index's filters and sorting.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const table = $("records");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  function filter() {
    const suite = $("f-suite").value, verdict = $("f-verdict").value, query = $("f-query").value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = (!suite || row.dataset.suite === suite) && (!verdict || row.dataset.verdict === verdict) && row.cells[0].textContent.toLowerCase().includes(query);
      row.hidden = !fits;
      shown += fits;
    }
    $("found").textContent = shown + (shown === 1 ? " record" : " records");
  }
  function value(row, at) {
    const cell = row.cells[at];
    const text = cell.dataset.value === undefined ? cell.textContent.trim().toLowerCase() : cell.dataset.value;
    return text === "" ? null : cell.dataset.value !== undefined && !Number.isNaN(Number(text)) ? Number(text) : text;
  }
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || (head.getAttribute("aria-sort") === null && !head.classList.contains("number"));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      rows.sort((a, b) => {
        const [x, y] = [value(a, at), value(b, at)];
        if (x === null || y === null) return (x === null) - (y === null);
        return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
      });
      body.append(...rows);
    });
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", filter);
})();
