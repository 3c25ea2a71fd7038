// The index's filters.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  function filter() {
    const suite = $("f-suite").value, verdict = $("f-verdict").value, query = $("f-query").value.trim().toLowerCase();
    let shown = 0;
    for (const section of document.querySelectorAll("section.suite")) {
      let here = 0;
      for (const row of section.querySelector("table").tBodies[0].rows) {
        const fits = (!suite || section.dataset.suite === suite) && (!verdict || row.dataset.verdict === verdict) && row.cells[1].textContent.toLowerCase().includes(query);
        row.hidden = !fits;
        here += fits;
      }
      section.hidden = !here;
      shown += here;
    }
    $("found").textContent = shown + (shown === 1 ? " record" : " records");
  }
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", filter);
})();
