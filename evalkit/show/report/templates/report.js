// The sample browser. Reads the columns and the compressed texts that stand in this page; asks
// nobody for anything. Whatever a model or a dataset said reaches the page as text nodes only.
"use strict";
(() => {
  const PAGE = 50;
  const $ = (id) => document.getElementById(id);
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g;

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("button[data-copy]");
    if (button) copy(button.dataset.copy, button);
  });

  function copy(text, button) {
    const done = () => { const was = button.textContent; button.textContent = "copied"; setTimeout(() => { button.textContent = was; }, 1200); };
    if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).then(done, () => bySelection(text, done));
    else bySelection(text, done);
  }
  function bySelection(text, done) {
    const area = document.createElement("textarea");
    area.value = text; area.className = "sr"; document.body.append(area); area.select();
    if (document.execCommand("copy")) done();
    area.remove();
  }

  function make(name, attributes, ...children) {
    const svg = ["svg", "rect", "line"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  // Text with its hidden characters spelled out: nodes, never HTML.
  function visible(text) {
    const nodes = [];
    let start = 0;
    for (const found of text.matchAll(HIDDEN)) {
      if (found.index > start) nodes.push(text.slice(start, found.index));
      const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      nodes.push(make("span", { class: "hidden" }, "U+" + code));
      start = found.index + found[0].length;
    }
    if (start < text.length) nodes.push(text.slice(start));
    return nodes;
  }

  if (!$("index")) return;
  const index = JSON.parse($("index").textContent);
  const leaves = index.leaves;
  const byName = new Map(leaves.map((leaf, at) => [leaf.name, at]));
  const texts = new Map(); // leaf -> promise of Map(id -> text)
  const rows = [];
  leaves.forEach((leaf, at) => { for (let i = 0; i < leaf.count; i++) rows.push([at, i]); });

  const idOf = (leaf, i) => (leaf.ids ? leaf.ids[i] : i);
  const scoreOf = (leaf, i) => (typeof leaf.scores === "string" ? Number(leaf.scores[i]) : leaf.scores[i]);
  const flagsOf = (leaf, i) => leaf.flags[i] || 0;
  const linkTo = (leaf, i) => "#sample/" + encodeURIComponent(leaf.name) + "/" + idOf(leaf, i) + suffix();
  const marginOf = (leaf, i) => (leaf.margins ? leaf.margins[i] : null);
  const flipOf = (leaf, i) => (leaf.flips && leaf.flips[i]) || "";

  function load(at) {
    if (!texts.has(at)) texts.set(at, unpack(at));
    return texts.get(at);
  }
  async function unpack(at) {
    const packed = Uint8Array.from(atob($("texts-" + at).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const list = JSON.parse(await new Response(stream).text());
    return new Map(list.map((text) => [text.id, text]));
  }

  // Filters
  // What is asked stands in the address, so that a link shows what its sender saw.
  const ASKED = { task: "f-task", result: "f-result", only: "f-only", query: "f-query", sort: "f-sort" };
  const state = { task: "", result: "", only: "", query: "", sort: "", page: 0, chosen: null, found: rows };
  function suffix() {
    const asked = new URLSearchParams();
    for (const key of Object.keys(ASKED)) if (state[key]) asked.set(key, state[key]);
    return String(asked) ? "?" + asked : "";
  }
  function remember() {
    const chosen = state.chosen && [leaves[state.chosen[0]], state.chosen[1]];
    history.replaceState(null, "", chosen ? linkTo(...chosen) : "#samples" + suffix());
  }
  function ask(values) {
    for (const [key, id] of Object.entries(ASKED)) { state[key] = values[key] || ""; $(id).value = state[key]; if ($(id).value !== state[key]) { state[key] = ""; $(id).value = ""; } }
    state.page = 0;
  }
  const families = new Map();
  for (const leaf of leaves) families.set(leaf.family, [...(families.get(leaf.family) || []), leaf]);
  for (const [family, members] of families) {
    if (members.length === 1) { $("f-task").append(make("option", { value: members[0].name }, ...visible(family))); continue; }
    const group = make("optgroup", { label: family });
    group.append(make("option", { value: "family:" + family }, "all of ", ...visible(family)));
    for (const leaf of members) group.append(make("option", { value: leaf.name }, ...visible(leaf.name)));
    $("f-task").append(group);
  }
  const present = new Set();
  for (const leaf of leaves) for (const bits of Object.values(leaf.flags)) for (const bit of Object.keys(index.flags)) if (bits & bit) present.add(bit);
  for (const [bit, name] of Object.entries(index.flags)) if (present.has(bit)) $("f-only").append(make("option", { value: bit }, name));
  if (leaves.some((leaf) => leaf.flips)) for (const [kind, name] of Object.entries(index.flips)) $("f-only").append(make("option", { value: "flip:" + kind }, name));
  $("f-only").append(make("option", { value: "text" }, "with its text here"));

  let asked = 0;
  async function search() {
    const turn = ++asked;
    const { task, result, only, query } = state;
    const family = task.startsWith("family:") ? task.slice(7) : null;
    let found = rows.filter(([at, i]) => {
      const leaf = leaves[at];
      if (task && !(family !== null ? leaf.family === family : leaf.name === task)) return false;
      if (result && (scoreOf(leaf, i) >= 0.5) !== (result === "right")) return false;
      if (only.startsWith("flip:")) return flipOf(leaf, i) === only.slice(5);
      if (only && only !== "text" && !(flagsOf(leaf, i) & Number(only))) return false;
      return true;
    });
    if (query || only === "text") {
      $("found").textContent = "Searching …";
      const words = query.toLowerCase().split(/\s+/).filter(Boolean);
      const kept = [];
      const wanted = new Map();
      for (const row of found) { if (!wanted.has(row[0])) wanted.set(row[0], []); wanted.get(row[0]).push(row); }
      for (const [at, each] of wanted) {
        const known = await load(at);
        if (turn !== asked) return;
        for (const row of each) {
          const text = known.get(idOf(leaves[at], row[1]));
          if (text && words.every((word) => haystack(text, at).includes(word))) kept.push(row);
        }
      }
      found = kept;
    }
    if (state.sort) {
      const by = state.sort === "close" ? 1 : -1;
      const far = ([at, i]) => { const margin = marginOf(leaves[at], i); return margin === null || margin === undefined ? Infinity : by * margin; };
      found = found.map((row) => [far(row), row]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]);
    }
    state.found = found; state.page = 0;
    show();
  }
  function haystack(text, at) {
    if (text.all === undefined) {
      text.all = [leaves[at].name, text.id, text.prompt, text.target, ...(text.texts || []), ...(text.choices || []).map((c) => c[0])].join("\n").toLowerCase();
    }
    return text.all;
  }

  // The list
  function show() {
    const { found, page } = state;
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const body = $("rows").tBodies[0];
    const hadFocus = body.contains(document.activeElement);
    const part = found.slice(page * PAGE, (page + 1) * PAGE);
    body.replaceChildren(...part.map(line));
    const right = found.reduce((sum, [at, i]) => sum + (scoreOf(leaves[at], i) >= 0.5), 0);
    $("found").textContent = `${found.length.toLocaleString("en")} samples` + (found.length ? `, ${right.toLocaleString("en")} right (${(100 * right / found.length).toFixed(1)}%)` : "") + (state.query && index.some ? ", among those whose text is here" : "");
    $("page").textContent = `${page + 1} of ${pages.toLocaleString("en")}`;
    $("previous").disabled = page === 0;
    $("next").disabled = page >= pages - 1;
    for (const at of new Set(part.map((row) => row[0]))) load(at).then((known) => excerpt(at, known));
    mark(hadFocus && "focus");
  }
  function line([at, i]) {
    const leaf = leaves[at];
    const score = scoreOf(leaf, i);
    const margin = leaf.margins && leaf.margins[i];
    const bits = flagsOf(leaf, i);
    const notes = Object.entries(index.flags).filter(([bit]) => bits & bit).map(([, name]) => name);
    const flip = flipOf(leaf, i);
    if (flip) notes.unshift(index.flips[flip]);
    const row = make("tr", { "data-at": at, "data-id": idOf(leaf, i) },
      make("th", { scope: "row" }, make("a", { href: linkTo(leaf, i) }, make("span", { class: "id" }, ...visible(leaf.name), " ", String(idOf(leaf, i))), make("span", { class: "what" }), notes.length ? make("span", { class: "note" }, notes.join(", ")) : null)),
      make("td", {}, result(score)),
      make("td", { class: "number" }, margin === null || margin === undefined ? "" : margin.toFixed(2)));
    return row;
  }
  function result(score) {
    if (score === null || score === undefined) return make("span", { class: "muted" }, "not a number");
    if (score === 1) return make("span", { class: "is-right" }, "✓ right");
    if (score === 0) return make("span", { class: "is-wrong" }, "✗ wrong");
    return make("span", {}, score.toFixed(3));
  }
  function excerpt(at, known) {
    for (const row of $("rows").tBodies[0].querySelectorAll(`tr[data-at="${at}"]`)) {
      const text = known.get(Number(row.dataset.id));
      const lines = text ? text.prompt.trim().split("\n\n").pop() : "";
      row.querySelector(".what").replaceChildren(...visible(lines.slice(0, 160)));
    }
  }
  // Shows which row is chosen; `follow`: brings it into view, and gives it the focus where "focus".
  function mark(follow) {
    for (const row of $("rows").tBodies[0].rows) {
      const chosen = state.chosen && Number(row.dataset.at) === state.chosen[0] && Number(row.dataset.id) === idOf(leaves[state.chosen[0]], state.chosen[1]);
      row.classList.toggle("chosen", Boolean(chosen));
      const link = row.querySelector("a");
      if (chosen) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
      if (!chosen || !follow) continue;
      if (follow === "focus") link.focus({ preventScroll: true });
      row.scrollIntoView({ block: "nearest" });
    }
  }

  // One sample
  async function open(at, i, follow) {
    state.chosen = [at, i];
    mark(follow);
    const leaf = leaves[at];
    const text = (await load(at)).get(idOf(leaf, i));
    if (!state.chosen || state.chosen[0] !== at || state.chosen[1] !== i) return;
    const box = $("sample");
    const copyLink = make("button", { type: "button", "data-copy": location.href.split("#")[0] + linkTo(leaf, i) }, "Copy link");
    const head = [make("h3", {}, ...visible(leaf.name), " ", String(idOf(leaf, i))),
      make("div", { class: "line" }, result(scoreOf(leaf, i)), make("span", { class: "muted" }, "by ", ...visible(leaf.metric.replace(/,none$/, ""))), ...metrics(text), flipOf(leaf, i) ? make("span", { class: "note" }, index.flips[flipOf(leaf, i)]) : null)];
    if (!text) {
      box.replaceChildren(...head, make("p", { class: "muted" }, "This sample's text is not in this file. ", make("code", {}, "evalkit report RUN --samples all"), " puts in every text."), make("div", { class: "actions" }, copyLink));
      return;
    }
    const copyPrompt = make("button", { type: "button", "data-copy": text.prompt }, "Copy prompt");
    const answers = text.sides ? text.sides.flatMap((side) => [make("h4", {}, ...visible(side.label)), make("div", { class: "line" }, result(side.score)), ...answer(side, text)]) : answer(text, text);
    box.replaceChildren(...head, make("h4", {}, "Prompt, as the model saw it"), make("pre", { tabindex: 0 }, ...visible(text.prompt)), ...answers, make("div", { class: "actions" }, copyPrompt, copyLink));
    box.scrollTop = 0;
    const prompt = box.querySelector("pre");
    prompt.scrollTop = prompt.scrollHeight; // the question stands behind the worked examples
  }
  function metrics(text) {
    if (!text || !text.metrics) return [];
    return Object.entries(text.metrics).map(([name, value]) => make("span", { class: "muted" }, ...visible(name.replace(/,none$/, "")), " " + (typeof value === "number" ? String(Number(value.toFixed(4))) : JSON.stringify(value))));
  }
  function answer(text, shared) {
    if (!text.choices) {
      return [make("h4", {}, "Answer"), ...text.texts.map((t) => make("pre", { tabindex: 0 }, ...visible(t))),
        ...Object.entries(text.found).flatMap(([name, found]) => [make("h4", {}, "Found by ", ...visible(name)), make("pre", {}, ...visible(found.map((f) => (typeof f === "string" ? f : JSON.stringify(f))).join("\n")))]),
        make("h4", {}, "Target"), make("pre", {}, ...visible(shared.target))];
    }
    const values = text.choices.map((choice) => Number(choice[1]));
    const best = Math.max(...values);
    const shares = values.map((value) => Math.exp(value - best));
    const total = shares.reduce((a, b) => a + b, 0);
    const gold = goldOf(shared, text.choices);
    return [make("h4", {}, "Choices, by log-likelihood"), make("div", { class: "options" }, ...text.choices.map((choice, i) => {
      const share = shares[i] / total;
      const tags = [values[i] === best ? make("span", { class: "tag" }, "chosen") : null, i === gold ? make("span", { class: "tag is-right" }, "target") : null];
      const bar = make("svg", { class: "bar", width: "100%", height: 10, "aria-hidden": "true" }, make("rect", { class: "track", width: "100%", height: 6, y: 2, rx: 2 }), make("rect", { class: "fill", width: (100 * (Number.isFinite(share) ? share : 0)).toFixed(1) + "%", height: 6, y: 2, rx: 2 }));
      return make("div", { class: "option" + (i === gold ? " gold" : "") },
        make("div", { class: "words" }, ...visible(choice[0].trim() || choice[0]), ...tags),
        choice[2] ? make("pre", { tabindex: 0 }, ...visible(choice[2])) : null,
        make("div", { class: "measure" }, bar, make("span", {}, `${Number.isFinite(values[i]) ? values[i].toFixed(3) : choice[1]} nats, ${(100 * share).toFixed(1)}%`)));
    })), ...(gold === null ? [make("h4", {}, "Target"), make("pre", {}, ...visible(shared.target))] : [])];
  }
  function goldOf(text, choices) {
    const target = text.target;
    if (/^\d+$/.test(target) && Number(target) < choices.length) return Number(target);
    const at = choices.findIndex((choice) => choice[0].trim() === target.trim());
    return at < 0 ? null : at;
  }

  // Ways in
  const later = (() => { let timer; return (run) => { clearTimeout(timer); timer = setTimeout(run, 160); }; })();
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const key of ["task", "result", "only", "sort"]) $(ASKED[key]).addEventListener("change", (event) => { state[key] = event.target.value; remember(); search(); });
  $("f-query").addEventListener("input", (event) => { state.query = event.target.value.trim(); later(() => { remember(); search(); }); });
  const turn = (by) => { state.page += by; show(); $("rows").scrollIntoView({ block: "nearest" }); };
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const by = { j: 1, k: -1 }[event.key];
    if (!by || !state.chosen) return;
    const now = state.found.findIndex(([at, i]) => at === state.chosen[0] && i === state.chosen[1]);
    const next = state.found[now + by];
    if (now < 0 || !next) return;
    event.preventDefault();
    const page = Math.floor((now + by) / PAGE);
    if (page !== state.page) { state.page = page; show(); }
    open(...next, "focus");
    remember();
  });
  async function follow() {
    const [place, asked] = location.hash.split("?");
    const sample = place.match(/^#sample\/(.+)\/(\d+)$/);
    const task = place.match(/^#task=(.+)$/);
    if (asked !== undefined) { ask(Object.fromEntries(new URLSearchParams(asked))); await search(); }
    if (sample) {
      const at = byName.get(decode(sample[1]));
      if (at === undefined) return;
      const leaf = leaves[at];
      const i = leaf.ids ? leaf.ids.indexOf(Number(sample[2])) : Number(sample[2]);
      if (i < 0 || i >= leaf.count) return;
      if (!state.found.some((row) => row[0] === at && row[1] === i)) reset();
      const page = Math.floor(state.found.findIndex((row) => row[0] === at && row[1] === i) / PAGE);
      if (page !== state.page || !$("rows").tBodies[0].rows.length) { state.page = page; show(); }
      const fresh = document.activeElement === document.body;
      await open(at, i, false);
      const narrow = matchMedia("(max-width: 820px)").matches;
      if (narrow || !inSight($("rows"))) $(narrow ? "sample" : "filters").scrollIntoView();
      if (fresh) $("sample").focus({ preventScroll: true });
      if (!narrow) mark(fresh ? "view" : "focus");
    } else if (task && byName.has(decode(task[1]))) {
      ask({ task: decode(task[1]) });
      search();
      $("samples").scrollIntoView();
    } else if (place === "#samples" && asked) {
      $("samples").scrollIntoView();
    }
  }
  function inSight(node) {
    const box = node.getBoundingClientRect();
    return box.top < innerHeight && box.bottom > 0;
  }
  function decode(text) { try { return decodeURIComponent(text); } catch { return text; } }
  function reset() {
    ask({});
    state.found = rows;
  }
  // Cards that ask for what is worth reading first.
  const wrong = ([at, i]) => scoreOf(leaves[at], i) === 0 && Number.isFinite(marginOf(leaves[at], i));
  const flagged = (bit) => ([at, i]) => Boolean(flagsOf(leaves[at], i) & bit);
  const CARDS = [
    ["Most confident wrong", "wrong, the surest first", wrong, { result: "wrong", sort: "sure" }],
    ["Closest calls", "other numerics may choose otherwise", flagged(32), { only: "32", sort: "close" }],
    ["Cut texts", "ended by the length limit", flagged(1), { only: "1" }],
    ["No answer found", "the task's filter found none", flagged(2), { only: "2" }],
    ["Unclosed thinking", "the text ends inside its thoughts", flagged(64), { only: "64" }],
  ];
  if ($("showme")) for (const [name, words, fits, asked] of CARDS) {
    const count = rows.reduce((sum, row) => sum + fits(row), 0);
    if (!count) continue;
    const card = make("button", { type: "button" }, make("b", {}, name), make("span", {}, `${count.toLocaleString("en")}: ${words}`));
    card.addEventListener("click", async () => {
      ask(asked); await search();
      if (state.found.length) await open(...state.found[0], false);
      remember();
      $("filters").scrollIntoView();
    });
    $("showme").append(card);
  }
  index.some = leaves.some((leaf) => leaf.texts < leaf.count);
  addEventListener("hashchange", follow);
  show();
  follow();
})();
