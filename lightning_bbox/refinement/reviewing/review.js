"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const {boxes, views, pictures} = data;
const at = id => document.getElementById(id);
const EDGES = ["left", "top", "right", "bottom"];
const WORDS = {accept: "accepted", reject: "rejected", edit: "edited", undecided: "undecided"};
const MARKS = {accept: "✓", reject: "✗", edit: "✎", undecided: ""};
const PER_PAGE = 60, UNDONE = 500, PLACE = "lightning_bbox.review." + data.key;

// What was decided, by a box's number: "accept", "reject", or the four edges that it was given.
let decisions = new Map();
let steps = [];        // to undo: lists of [box, what was decided before]
let shown = [];        // the boxes that the filters leave, in their order
let current = 0;       // the place among these of the box at hand
let edge = -1;         // the edge that keys move, or none
let lastEdge = -1;     // the edge that was taken last

const shiftOf = box => Math.max(...box.old.map((value, side) => Math.abs(box.new[side] - value)));
const shifts = boxes.map(shiftOf);
const stateOf = n => {
  const decided = decisions.get(n);
  return decided === undefined ? "undecided" : Array.isArray(decided) ? "edit" : decided;
};
const outcomeOf = n => {
  const decided = decisions.get(n);
  return Array.isArray(decided) ? decided : decided === "reject" ? boxes[n].old : boxes[n].new;
};
const number = (value, digits = 2) => String(Number(value.toFixed(digits)));

// Kept in the browser.

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(PLACE) || "null");
    if (kept) {
      decisions = new Map(kept.decisions);
      steps = kept.steps;
    }
  } catch (problem) {
    warn("This browser keeps nothing of this page: save your decisions before you close it.");
  }
}

function keep() {
  try {
    localStorage.setItem(PLACE, JSON.stringify({decisions: [...decisions], steps}));
  } catch (problem) {
    warn("This browser has no room for your progress: save your decisions before you close the page.");
  }
}

function warn(text) {
  at("kept").textContent = text;
  at("kept").hidden = false;
}

const say = text => { at("said").textContent = text; };

// Deciding.

function decide(changes) {
  const before = changes.map(([n]) => [n, decisions.get(n) ?? null]);
  steps = [...steps, before].slice(-UNDONE);
  put(changes);
}

function put(changes) {
  for (const [n, decided] of changes) {
    if (decided === null) decisions.delete(n);
    else decisions.set(n, decided);
  }
  keep();
  for (const [n] of changes) redrawThumb(n);
  drawStage();
  count();
}

function decideCurrent(decided) {
  if (!shown.length) return;
  const n = shown[current];
  decide([[n, decided]]);
  say(`${decided ? WORDS[decided] : "undecided"}: ${nameOf(n)}`);
  const onGrid = at("grid").contains(document.activeElement) || edge >= 0 ||
    document.activeElement === document.body;
  edge = -1;
  if (decided && current + 1 < shown.length) go(current + 1, onGrid);
  else if (onGrid) go(current, true);
}

function undo() {
  const step = steps.pop();
  if (!step) return say("nothing to undo");
  put(step);
  const place = shown.indexOf(step[0][0]);
  if (place >= 0) go(place, at("grid").contains(document.activeElement));
  say(step.length > 1 ? `undone: ${step.length} boxes` : `undone: ${nameOf(step[0][0])}`);
}

const nameOf = n => `${boxes[n].label}, ${boxes[n].id}`;

// Edges: dragged, or moved by keys.

function limited(n, side, value) {
  const box = boxes[n], [height, width] = box.size, view = views[n];
  const step = 10 ** -box.digits;
  const edges = outcomeOf(n).map((each, k) => Math.min(Math.max(each, 0), k % 2 ? height : width));
  const low = side < 2 ? Math.max(0, view[side]) : edges[side - 2] + step;
  const high = side < 2 ? edges[side + 2] - step : Math.min(side === 2 ? width : height, view[side]);
  const whole = value => Number((Math.round(value / step) * step).toFixed(box.digits));
  let rounded = whole(value);
  if (rounded > high) rounded = Number((Math.floor(high / step + 1e-9) * step).toFixed(box.digits));
  if (rounded < low) rounded = Number((Math.ceil(low / step - 1e-9) * step).toFixed(box.digits));
  edges[side] = rounded;
  return edges;
}

function nudge(side, by) {
  const n = shown[current], before = outcomeOf(n);
  const least = 10 ** -boxes[n].digits;
  const value = before[side] + Math.sign(by) * Math.max(Math.abs(by), least);
  const edges = limited(n, side, value);
  if (edges[side] === before[side]) return say(`the ${EDGES[side]} edge goes no farther`);
  decide([[n, edges]]);
  say(`${EDGES[side]} edge at ${number(edges[side], 3)}`);
  takeEdge(side);
}

function takeEdge(side) {
  edge = lastEdge = side;
  at("drawing").querySelectorAll("[role=slider]")[side]?.focus();
}

function drag(start, side) {
  const svg = at("drawing"), n = shown[current], first = outcomeOf(n)[side];
  const bounds = svg.getBoundingClientRect(), view = views[n];
  const scale = (view[2] - view[0]) / bounds.width;
  const along = event => (side % 2 ? event.clientY - start.clientY : event.clientX - start.clientX);
  let edges = null;
  const move = event => {
    if (!along(event) && !edges) return;
    edges = limited(n, side, first + along(event) * scale);
    drawStage(edges);
  };
  const end = event => {
    svg.removeEventListener("pointermove", move);
    svg.removeEventListener("pointerup", end);
    svg.removeEventListener("pointercancel", end);
    if (event.type === "pointerup" && edges && edges[side] !== first) {
      decide([[n, edges]]);
      say(`edited: ${nameOf(n)}`);
    } else drawStage();
    takeEdge(side);
  };
  svg.setPointerCapture(start.pointerId);
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerup", end);
  svg.addEventListener("pointercancel", end);
  start.preventDefault();
}

// Drawing.

function svgOf(name, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  parent.append(made);
  return made;
}

function drawRects(svg, n, edited) {
  const view = views[n], decided = edited || decisions.get(n);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `${view[0]} ${view[1]} ${view[2] - view[0]} ${view[3] - view[1]}`);
  const layers = [["old", boxes[n].old], ["new", boxes[n].new]];
  if (Array.isArray(decided)) layers.push(["edit", decided]);
  const outcome = Array.isArray(decided) ? "edit" : decided === "reject" ? "old" : "new";
  for (const [kind, [x, y, right, bottom]] of layers) {
    const place = {x, y, width: right - x, height: bottom - y};
    const faint = decided !== undefined && kind !== outcome ? " faint" : "";
    svgOf("rect", {...place, class: "halo" + faint}, svg);
    svgOf("rect", {...place, class: kind + faint + (kind === outcome ? " outcome" : "")}, svg);
  }
}

function drawStage(edited) {
  const svg = at("drawing"), empty = !shown.length;
  for (const id of ["accept", "reject", "edge", "clear"]) at(id).disabled = empty;
  at("undo").disabled = !steps.length;
  at("view").hidden = empty;
  at("facts").replaceChildren();
  if (empty) return;
  const n = shown[current], box = boxes[n];
  const source = "data:image/jpeg;base64," + pictures[n];
  if (at("large").src !== source) at("large").src = source;
  at("large").alt = `What is around ${nameOf(n)}`;
  const active = document.activeElement, held = active && active.dataset.side;
  drawRects(svg, n, edited);
  const [left, top, right, bottom] = edited || outcomeOf(n);
  const lines = [[left, top, left, bottom], [left, top, right, top], [right, top, right, bottom],
                 [left, bottom, right, bottom]];
  lines.forEach(([x1, y1, x2, y2], side) => {
    const value = [left, top, right, bottom][side];
    const group = svgOf("g", {
      role: "slider", tabindex: 0, "data-side": side, "aria-label": `${EDGES[side]} edge`,
      "aria-orientation": side % 2 ? "vertical" : "horizontal", "aria-valuenow": number(value, 3),
      "aria-valuemin": 0, "aria-valuemax": box.size[side % 2 ? 0 : 1],
      "aria-valuetext": `${number(value, 3)} pixels`, class: side % 2 ? "down" : "across"}, svg);
    svgOf("line", {x1, y1, x2, y2, class: "line"}, group);
    const hit = svgOf("line", {x1, y1, x2, y2, class: "hit"}, group);
    hit.addEventListener("pointerdown", event => { if (!event.button) drag(event, side); });
    group.addEventListener("focus", () => { edge = side; });
    group.addEventListener("blur", () => { edge = -1; });
  });
  if (held !== undefined) takeEdge(Number(held));
  const corners = edges => edges.map(value => number(value)).join(", ");
  const facts = [["box", `${shown.indexOf(n) + 1} of ${shown.length}: ${box.id}`], ["picture", box.image],
    ["class", box.label], ["decision", WORDS[edited ? "edit" : stateOf(n)]],
    ["wrong before", box.wrong === null ? "not known" : `probability ${number(100 * box.wrong, 1)} %`],
    ["gain of IoU", box.gain === null ? "not known" : `${number(box.gain, 3)} expected`],
    ["largest shift", `${number(shifts[n])} pixels of an edge`],
    ["old", corners(box.old)], ["new", corners(box.new)]];
  const decided = edited || decisions.get(n);
  if (Array.isArray(decided)) facts.push(["yours", corners(decided)]);
  for (const [name, text] of facts) {
    const term = document.createElement("dt"), told = document.createElement("dd");
    term.textContent = name;
    told.textContent = text;
    at("facts").append(term, told);
  }
}

function thumb(n, place) {
  const box = boxes[n], option = document.createElement("div");
  option.className = "box";
  option.setAttribute("role", "option");
  option.dataset.box = n;
  const seen = document.createElement("div");
  seen.className = "seen";
  const picture = document.createElement("img");
  picture.alt = "";
  picture.loading = "lazy";
  picture.decoding = "async";
  picture.src = "data:image/jpeg;base64," + pictures[n];
  const drawing = svgOf("svg", {"aria-hidden": "true"}, seen);
  seen.prepend(picture);
  const mark = document.createElement("span");
  mark.className = "mark";
  mark.setAttribute("aria-hidden", "true");
  const words = document.createElement("p"), label = document.createElement("span");
  label.className = "label";
  label.textContent = box.label;
  const sure = document.createElement("span");
  sure.textContent = box.wrong === null ? `${number(shifts[n], 1)} pixels`
    : `${Math.round(100 * box.wrong)} % wrong`;
  words.append(label, sure);
  option.append(seen, mark, words);
  option.addEventListener("click", () => go(place, true));
  option.addEventListener("focus", () => { if (current !== place) go(place); });
  drawThumb(option, drawing, n);
  return option;
}

function drawThumb(option, drawing, n) {
  const box = boxes[n], state = stateOf(n);
  drawRects(drawing, n);
  option.dataset.state = state;
  option.querySelector(".mark").textContent = MARKS[state];
  const sure = box.wrong === null ? "" : `, wrong with ${Math.round(100 * box.wrong)} %`;
  option.setAttribute("aria-label",
    `${box.label}${sure}, largest shift ${number(shifts[n], 1)} pixels, ${WORDS[state]}, ${box.id}`);
}

function redrawThumb(n) {
  const option = at("grid").querySelector(`[data-box="${n}"]`);
  if (option) drawThumb(option, option.querySelector("svg"), n);
}

let drawn = "";

function drawGrid() {
  const first = current - current % PER_PAGE, wanted = shown.slice(first, first + PER_PAGE);
  const name = `${first}:${wanted.join()}`;
  if (name !== drawn) {
    at("grid").replaceChildren(...wanted.map((n, k) => thumb(n, first + k)));
    drawn = name;
  }
  [...at("grid").children].forEach((option, k) => {
    const chosen = first + k === current;
    option.setAttribute("aria-selected", chosen);
    option.tabIndex = chosen ? 0 : -1;
    option.setAttribute("aria-posinset", first + k + 1);
    option.setAttribute("aria-setsize", shown.length);
  });
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  const page = Math.floor(current / PER_PAGE);
  at("page").textContent = `page ${page + 1} of ${pages}, ${shown.length} boxes`;
  at("before").disabled = page === 0;
  at("after").disabled = page + 1 >= pages;
}

function go(place, focus = false) {
  current = Math.max(0, Math.min(place, shown.length - 1));
  edge = lastEdge = -1;
  if (document.activeElement && document.activeElement.dataset.side !== undefined) {
    document.activeElement.blur();
    focus = true;
  }
  drawGrid();
  drawStage();
  const option = at("grid").children[current % PER_PAGE];
  if (!option) return;
  if (focus) option.focus({preventScroll: true});
  option.scrollIntoView({block: "nearest"});
}

function count() {
  const of = {accept: 0, reject: 0, edit: 0, undecided: boxes.length - decisions.size};
  for (const n of decisions.keys()) of[stateOf(n)] += 1;
  at("counts").textContent = ["accept", "reject", "edit", "undecided"]
    .map(state => `${of[state]} ${WORDS[state]}`).join(", ");
  at("done").max = Math.max(boxes.length, 1);
  at("done").value = decisions.size;
  countOpen();
}

function countOpen() {
  const open = shown.filter(n => !decisions.has(n)).length;
  at("all").textContent = `Accept all ${open} undecided`;
  at("all").disabled = !open;
}

// Filters.

function filter() {
  const n = shown[current];
  const limit = (id, otherwise) => at(id).value === "" ? otherwise : Number(at(id).value);
  const least = limit("least", 0), most = limit("most", Infinity), likely = limit("likely", 0) / 100;
  const label = at("class").value, state = at("state").value;
  shown = boxes.map((_, k) => k).filter(k => (!label || boxes[k].label === label.slice(1)) &&
    (!state || stateOf(k) === state) && shifts[k] >= least && shifts[k] <= most &&
    (!likely || (boxes[k].wrong ?? -1) >= likely));
  const by = {gain: k => boxes[k].gain ?? -Infinity, shift: k => shifts[k]}[at("order").value];
  if (by) shown.sort((a, b) => by(b) - by(a) || a - b);
  if (at("order").value === "file") shown.sort((a, b) => boxes[a].row - boxes[b].row);
  go(Math.max(0, shown.indexOf(n)));
  countOpen();
}

// Decisions out, and back in.

function decided() {
  const {key, root, reading, proposals, decimals} = data;
  const each = boxes.map((box, n) => {
    const decision = stateOf(n), one = {id: box.id, old: box.old, new: box.new, decision};
    return decision === "edit" ? {...one, box: decisions.get(n)} : one;
  });
  return {lightning_bbox: "decisions", version: 1, key, root, reading, proposals, decimals, boxes: each};
}

function save() {
  const link = document.createElement("a");
  const file = new Blob([JSON.stringify(decided(), null, 1)], {type: "application/json"});
  link.href = URL.createObjectURL(file);
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say("saved as decisions.json; lightning-bbox apply makes annotation files of it");
}

async function load() {
  const [file] = at("load").files;
  at("load").value = "";
  if (!file) return;
  let read = null;
  try { read = JSON.parse(await file.text()); } catch (problem) { /* said below */ }
  const fits = read && read.key === data.key && Array.isArray(read.boxes) &&
    read.boxes.length === boxes.length && read.boxes.every(one => one && (one.decision !== "edit" ||
      Array.isArray(one.box) && one.box.length === 4 && one.box.every(Number.isFinite)));
  if (!fits) return say(`${file.name} holds no decisions on these boxes`);
  decide(read.boxes.map((one, n) => [n, one.decision === "edit" ? one.box :
    one.decision === "accept" || one.decision === "reject" ? one.decision : null]));
  say(`loaded from ${file.name}`);
}

// Keys.

function perRow() {
  const options = [...at("grid").children];
  return Math.max(1, options.filter(option => option.offsetTop === options[0].offsetTop).length);
}

const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

function onKey(event) {
  const target = event.target;
  if (target.matches("select, input, textarea") || event.altKey || event.metaKey && event.key !== "z") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") undo();
    else if (edge >= 0 && MOVES[key]) moveEdge(key, 0.1);
    else return;
    return event.preventDefault();
  }
  if (edge >= 0 && MOVES[key]) moveEdge(key, event.shiftKey ? 10 : 1);
  else if (key === "a") decideCurrent("accept");
  else if (key === "r") decideCurrent("reject");
  else if (key === "c") decideCurrent(null);
  else if (key === "u") undo();
  else if (key === "e" && shown.length) takeEdge((edge + (event.shiftKey ? 3 : 1)) % 4);
  else if (key === "Escape" && edge >= 0) go(current, true);
  else if (key === "ArrowRight") go(current + 1, true);
  else if (key === "ArrowLeft") go(current - 1, true);
  else if (key === "ArrowDown") go(current + perRow(), true);
  else if (key === "ArrowUp") go(current - perRow(), true);
  else if (key === "Home") go(0, true);
  else if (key === "End") go(shown.length - 1, true);
  else if (key === "PageDown") go(current + PER_PAGE, true);
  else if (key === "PageUp") go(current - PER_PAGE, true);
  else return;
  event.preventDefault();
}

function moveEdge(key, by) {
  const step = MOVES[key][edge % 2];
  if (step) nudge(edge, step * by);
}

// The beginning.

for (const label of [...new Set(boxes.map(box => box.label))].sort()) {
  const option = document.createElement("option");
  option.value = "=" + label;
  option.textContent = label;
  at("class").append(option);
}
const left = data.left ? ` ${data.left} more boxes moved that are not on this page; they stay as they were.` : "";
at("about").textContent = `${boxes.length} boxes moved: decide on each whether it may.${left} ` +
  "Your progress is kept in this browser. Save your decisions, and lightning-bbox apply decisions.json makes " +
  "annotation files of them.";
at("filters").addEventListener("change", filter);
at("filters").addEventListener("submit", event => event.preventDefault());
at("accept").onclick = () => decideCurrent("accept");
at("reject").onclick = () => decideCurrent("reject");
at("clear").onclick = () => decideCurrent(null);
at("edge").onclick = () => takeEdge((lastEdge + 1) % 4);
at("undo").onclick = undo;
at("export").onclick = save;
at("load").onchange = load;
at("before").onclick = () => go(current - current % PER_PAGE - PER_PAGE);
at("after").onclick = () => go(current - current % PER_PAGE + PER_PAGE);
at("all").onclick = () => {
  const open = shown.filter(n => !decisions.has(n));
  decide(open.map(n => [n, "accept"]));
  say(`accepted: ${open.length} boxes, on all pages of these filters; U undoes it`);
};
document.addEventListener("keydown", onKey);
restore();
filter();
count();
})();
