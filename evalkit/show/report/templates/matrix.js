// Tables of models by tasks: sorting by click, and two ticked rows held against each other.
"use strict";
(() => {
  const Z95 = 1.959964;
  const box = document.querySelector(".versus");
  const make = (name, text, className) => { const node = document.createElement(name); node.textContent = text; if (className) node.className = className; return node; };
  function value(row, at) {
    const cell = row.cells[at];
    const text = cell.dataset.value === undefined ? cell.textContent.trim().toLowerCase() : cell.dataset.value;
    return text === "" ? null : cell.dataset.value !== undefined && !Number.isNaN(Number(text)) ? Number(text) : text;
  }
  for (const table of document.querySelectorAll("table.matrix")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const up = was === "descending" || (was === null && !head.classList.contains("number"));
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...[...body.rows].sort((a, b) => {
          const [x, y] = [value(a, at), value(b, at)];
          if (x === null || y === null) return (x === null) - (y === null);
          return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
        }));
      });
    });
    table.addEventListener("change", (event) => {
      for (const other of document.querySelectorAll("table.matrix")) if (other !== table) for (const tick of other.querySelectorAll("input:checked")) tick.checked = false;
      const ticked = [...table.querySelectorAll("input:checked")];
      if (ticked.length > 2) ticked.find((tick) => tick !== event.target).checked = false;
      versus(table, [...table.querySelectorAll("input:checked")].map((tick) => tick.closest("tr")));
    });
  }
  function versus(table, rows) {
    box.replaceChildren();
    if (rows.length !== 2) return;
    const names = rows.map((row) => row.cells[1].innerText.split("\n")[0]);
    const made = document.createElement("table");
    const heads = make("tr", "");
    for (const name of ["Task", ...names, "Difference", "95% interval", "Outcome"]) heads.append(make("th", name, ["Task", "Outcome"].includes(name) ? "" : "number"));
    made.createTHead().append(heads);
    const body = made.createTBody();
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      const [a, b] = rows.map((row) => row.cells[at].dataset);
      if (!head.classList.contains("number") || !a.value || !b.value) return;
      const scale = a.share ? 100 : 1, digits = a.share ? 1 : 3;
      const off = Number(b.value) - Number(a.value);
      const half = Z95 * Math.hypot(Number(a.error), Number(b.error));
      const noise = half && Math.abs(off) < half;
      const signed = (x) => (x < 0 ? "-" : "+") + Math.abs(scale * x).toFixed(digits);
      const line = make("tr", "", noise ? "close" : "");
      const task = make("th", head.innerText.trim()); task.scope = "row";
      line.append(task, make("td", (scale * a.value).toFixed(digits), "number"), make("td", (scale * b.value).toFixed(digits), "number"),
        make("td", signed(off), "number strong"), make("td", half ? `${signed(off - half)} to ${signed(off + half)}` : "", "number"),
        make("td", !half ? "no error known" : noise ? "not told apart" : "told apart"));
      body.append(line);
    });
    box.append(make("h3", `${names[1]} against ${names[0]}`), made, make("p", "By the standard errors alone. evalkit compare pairs documents, and sees smaller differences.", "muted small"));
  }
})();
