"use strict";
// The page of a report. Everything from outside (texts, ids, names) goes into the document as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const entries = data.entries;
const PAGE = 20, CHUNK = 200, MILLI = 1000, FULL_SHADE = 3, MOST_POINTS = 2000;
const state = { query: "", arm: 0, finish: "", weights: "", sort: "order", relative: data.has_base, page: 0, found: [] };
const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value; else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const perToken = (entry, arm) => {
  const total = entries.rewards[entry][arm];
  return total === null || total === undefined || !entries.tokens[entry] ? null : total / entries.tokens[entry];
};

// --- Theme ---------------------------------------------------------------------------------------------------------

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  drawCharts();
}
const isDark = () => document.documentElement.dataset.theme === "dark";
prefersDark.addEventListener("change", (event) => setTheme(event.matches));
$("theme").addEventListener("click", () => setTheme(!isDark()));

// --- Summary -------------------------------------------------------------------------------------------------------

function showSummary() {
  $("title").textContent = data.facts.name || data.facts.job;
  for (const [name, value] of Object.entries(data.facts)) {
    const text = String(value);
    $("facts").append(element("div", { class: text.length > 60 ? "wide" : "" }, element("dt", {}, name), element("dd", {}, text)));
  }
  $("failures").hidden = data.failures.length === 0;
  for (const failure of data.failures) {
    const cells = [failure.code, String(failure.rows), failure.message].map((text) => element("td", {}, text));
    $("failures").querySelector("tbody").append(element("tr", {}, ...cells));
  }
}

// --- Tokens: a chunk is unpacked when one of its completions is shown ------------------------------------------------

const chunks = new Map();
const loaded = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));

async function unpack(index) {
  await loaded; // the chunks stand behind this script, so that the page is there before they are read
  const source = document.querySelectorAll('script[type="application/octet-stream"]')[index].textContent;
  const packed = Uint8Array.from(atob(source), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const first = index * CHUNK, last = Math.min(first + CHUNK, entries.id.length);
  const starts = [0];
  for (let entry = first; entry < last; entry++) starts.push(starts[starts.length - 1] + entries.tokens[entry]);
  const count = starts[starts.length - 1];
  const column = (n) => new Int16Array(buffer, 4 * count + 2 * count * n, count);
  const rewards = data.arms.map((_, arm) => column(2 + arm));
  return { starts, ids: new Int32Array(buffer, 0, count), logprobs: column(0), base: column(1), rewards };
}

function chunkOf(entry) {
  const index = Math.floor(entry / CHUNK);
  if (!chunks.has(index)) chunks.set(index, unpack(index));
  return chunks.get(index);
}

// A character may be spread over several tokens: its bytes are decoded as they come, and it is shown with the last.
function textsOf(ids) {
  if (data.tokens === null) return Array.from(ids, (id) => `⟨${id}⟩`);
  const decoder = new TextDecoder();
  return Array.from(ids, (id, place) => {
    const bytes = Uint8Array.from(data.tokens[id] || "", (letter) => letter.charCodeAt(0));
    return decoder.decode(bytes, { stream: place < ids.length - 1 });
  });
}

function shade(value) {
  const strength = Math.min(Math.abs(value) / FULL_SHADE, 1) * 0.75;
  return `rgba(var(--${value < 0 ? "minus" : "plus"}), ${strength.toFixed(3)})`;
}

// The tokens of which some letter belongs to what was searched for.
function searchedPlaces(texts) {
  const places = texts.flatMap((text, place) => Array(text.length).fill(place)), whole = texts.join("").toLowerCase();
  const found = new Set(), length = state.query.length;
  for (let at = length ? whole.indexOf(state.query) : -1; at >= 0; at = whole.indexOf(state.query, at + length)) {
    places.slice(at, at + length).forEach((place) => found.add(place));
  }
  return found;
}

async function showTokens(box, entry) {
  const chunk = await chunkOf(entry);
  const start = chunk.starts[entry % CHUNK], end = chunk.starts[(entry % CHUNK) + 1];
  const texts = textsOf(chunk.ids.subarray(start, end));
  const found = searchedPlaces(texts);
  const spans = texts.map((text, place) => {
    const at = start + place, base = chunk.base[at] / MILLI;
    const rewards = chunk.rewards.map((values) => values[at] / MILLI);
    const span = element(found.has(place) ? "mark" : "span", { class: "token", tabindex: "-1" }, text === "" ? "\u200b" : text);
    span.numbers = { id: chunk.ids[at], text, logprob: chunk.logprobs[at] / MILLI, base, rewards };
    if (data.arms.length) {
      const reward = rewards[state.arm];
      span.style.background = shade(state.relative ? reward - base : reward + FULL_SHADE / 2);
    }
    return span;
  });
  box.replaceChildren(...spans);
}

// --- The list ------------------------------------------------------------------------------------------------------

function matches(entry) {
  if (state.finish && entries.finish[entry] !== state.finish) return false;
  if (state.weights && entries.weights[entry] !== state.weights) return false;
  if (!state.query) return true;
  const texts = [entries.text[entry], data.prompts[entries.prompt[entry]], entries.id[entry], entries.error[entry] || ""];
  return texts.some((text) => text.toLowerCase().includes(state.query));
}

function sortKeys() {
  const keys = { order: ["order of the input", null] };
  data.arms.forEach((arm, index) => { keys[`arm${index}`] = [`${arm}, per token`, (entry) => perToken(entry, index)]; });
  if (hasKl) keys.kl = ["KL", (entry) => entries.kl[entry]];
  keys.tokens = ["length", (entry) => entries.tokens[entry]];
  return keys;
}
const hasKl = data.has_logprobs && data.has_base;
const keys = sortKeys();

function find() {
  const [name, direction] = state.sort.split(":");
  const key = keys[name][1];
  state.found = entries.id.map((_, entry) => entry).filter(matches);
  if (key !== null) {
    const sign = direction === "up" ? 1 : -1;
    const value = (entry) => { const found = key(entry); return found === null ? Infinity : sign * found; };
    state.found.sort((one, other) => value(one) - value(other) || one - other);
  }
  state.page = 0;
  showPage();
}

function marked(text) {
  const place = state.query ? text.toLowerCase().indexOf(state.query) : -1;
  if (place < 0) return [text];
  const end = place + state.query.length;
  return [text.slice(0, place), element("mark", {}, text.slice(place, end)), text.slice(end)];
}

function card(entry) {
  const facts = [element("b", {}, ...marked(entries.id[entry])), `sample ${entries.sample[entry]}`, entries.finish[entry]];
  data.arms.forEach((arm, index) => facts.push(`${arm} ${number(entries.rewards[entry][index])} (${number(perToken(entry, index))} per token)`));
  if (hasKl) facts.push(`KL ${number(entries.kl[entry])}`);
  facts.push(`${entries.tokens[entry]} tokens`);
  if (entries.weights[entry]) facts.push(`at ${entries.weights[entry]}`);
  const header = element("header", {}, ...facts.map((fact) => (typeof fact === "string" ? element("span", {}, fact) : fact)));
  const made = element("article", { tabindex: "0", "data-entry": entry }, header);
  made.append(element("div", { class: "prompt" }, ...marked(data.prompts[entries.prompt[entry]])));
  if (entries.error[entry] !== null) {
    made.append(element("div", { class: "error" }, entries.error[entry]));
  } else {
    const box = element("div", { class: "tokens" }, ...marked(entries.text[entry]));
    made.append(box);
    if (entries.tokens[entry]) showTokens(box, entry);
  }
  return made;
}

function showPage() {
  const pages = Math.max(Math.ceil(state.found.length / PAGE), 1);
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const shown = state.found.slice(state.page * PAGE, (state.page + 1) * PAGE);
  $("list").replaceChildren(...shown.map(card));
  $("count").textContent = `${state.found.length.toLocaleString("en")} of ${entries.id.length.toLocaleString("en")} completions`;
  $("page").textContent = `page ${state.page + 1} of ${pages}`;
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page === pages - 1;
  showLegend();
}

function showLegend() {
  $("legend").hidden = data.arms.length === 0;
  const arm = data.arms[state.arm];
  $("legend").querySelector(".low").textContent = state.relative ? `the base likes it more than ${arm}` : `${arm} finds it unlikely`;
  $("legend").querySelector(".high").textContent = state.relative ? `${arm} likes it more than the base` : `${arm} finds it likely`;
}

function turn(pages) {
  state.page += pages;
  showPage();
  $("reader").scrollIntoView();
}

// --- Tooltip: by the mouse and by the keyboard -----------------------------------------------------------------------

function showTip(span) {
  const { id, text, logprob, base, rewards } = span.numbers;
  const lines = [`${JSON.stringify(text)}  id ${id}`];
  if (data.has_logprobs) lines.push(`log π ${number(logprob, 3)}`);
  if (data.has_base) lines.push(`log π base ${number(base, 3)}`);
  rewards.forEach((reward, arm) => {
    const more = reward - base, toBase = data.has_base ? `  (${more < 0 ? "" : "+"}${number(more, 3)} to the base)` : "";
    lines.push(`${data.arms[arm]} ${number(reward, 3)}${toBase}`);
  });
  const tip = $("tip"), box = span.getBoundingClientRect();
  tip.textContent = lines.join("\n");
  tip.hidden = false;
  const above = box.top > tip.offsetHeight + 10;
  tip.style.top = `${above ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`;
}
const hideTip = () => { $("tip").hidden = true; };
for (const [show, hide] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
  $("list").addEventListener(show, (event) => { if (event.target.numbers) showTip(event.target); });
  $("list").addEventListener(hide, hideTip);
}

// --- Controls and keys -----------------------------------------------------------------------------------------------

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
}

function setUpControls() {
  fill($("arm"), data.arms.map((arm, index) => [index, arm]));
  $("arm-label").hidden = data.arms.length === 0;
  $("relative").parentElement.hidden = data.arms.length === 0 || !data.has_base;
  const weights = [...new Set(entries.weights)].filter((text) => text);
  $("weights-label").hidden = weights.length === 0;
  fill($("weights"), [["", "all"], ...weights.map((text) => [text, text])]);
  const sorts = Object.entries(keys).flatMap(([name, [text, key]]) =>
    key === null ? [[name, text]] : [[`${name}:down`, `${text}, highest first`], [`${name}:up`, `${text}, lowest first`]]);
  fill($("sort"), sorts);
  const listen = (id, name, read) => $(id).addEventListener("input", () => { state[name] = read($(id)); find(); });
  listen("search", "query", (input) => input.value.toLowerCase());
  for (const name of ["finish", "weights", "sort"]) listen(name, name, (select) => select.value);
  $("arm").addEventListener("input", () => { state.arm = Number($("arm").value); showPage(); });
  $("relative").addEventListener("input", () => { state.relative = $("relative").checked; showPage(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
}

function step(list, distance) {
  const place = list.indexOf(document.activeElement);
  const next = list[place < 0 ? (distance > 0 ? 0 : list.length - 1) : place + distance];
  if (next) next.focus();
}

function stepCard(distance) {
  const current = document.activeElement.closest("article");
  if (current) current.focus();
  step([...document.querySelectorAll("article")], distance);
}

function stepToken(distance) {
  const current = document.activeElement.closest("article");
  if (current) step([...current.querySelectorAll(".token")], distance);
}

const KEYS = {
  "/": () => $("search").focus(), j: () => stepCard(1), k: () => stepCard(-1), n: () => turn(1), p: () => turn(-1),
  ArrowRight: () => stepToken(1), ArrowLeft: () => stepToken(-1), t: () => setTheme(!isDark()),
};
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  if (event.key === "Escape") { document.activeElement.blur(); hideTip(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// --- Charts: drawn when the plotting library, the last thing in the file, is there -------------------------------------

let chartsReady = false;
function genarmCharts() { chartsReady = true; drawCharts(); }

const COLORS = ["#2a78d6", "#e0711a", "#2f9e6e", "#b0479a", "#8a6d1f", "#4b5fa8"];

function draw(id, traces, x, y) {
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--text").trim(), line = style.getPropertyValue("--line").trim();
  const axis = (title) => ({ title: { text: title }, gridcolor: line, zerolinecolor: line, automargin: true });
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 12 }, barmode: "overlay",
    margin: { l: 50, r: 10, t: 10, b: 40 }, xaxis: axis(x), yaxis: axis(y), legend: { orientation: "h", y: 1.15 },
    showlegend: traces.length > 1,
  };
  Plotly.react($(id), traces, layout, { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
}

function drawCharts() {
  if (!chartsReady) return;
  const done = entries.id.map((_, entry) => entry).filter((entry) => entries.tokens[entry] && entries.finish[entry] !== "failed");
  $("charts").hidden = data.arms.length === 0 || done.length === 0;
  if ($("charts").hidden) return;
  draw("distribution", data.arms.map((arm, index) => ({
    type: "histogram", name: arm, x: done.map((entry) => perToken(entry, index)), opacity: 0.65,
    marker: { color: COLORS[index % COLORS.length] }, nbinsx: 60, hovertemplate: "%{x}: %{y}<extra>%{fullData.name}</extra>",
  })), "nats per token", "completions");
  const every = Math.ceil(done.length / MOST_POINTS), some = done.filter((_, place) => place % every === 0);
  const withKl = some.filter((entry) => entries.kl[entry] !== null);
  $("kl-box").hidden = withKl.length === 0;
  draw("kl", data.arms.map((arm, index) => ({
    type: "scatter", mode: "markers", name: arm, x: withKl.map((entry) => entries.kl[entry]),
    y: withKl.map((entry) => perToken(entry, index)), marker: { color: COLORS[index % COLORS.length], size: 5, opacity: 0.5 },
    text: withKl.map((entry) => entries.id[entry].replace(/</g, "&lt;")), hovertemplate: "%{text}<br>KL %{x:.2f}, %{y:.3f}<extra></extra>",
  })), "KL: Σ (log π − log π base)", "nats per token");
  drawFront();
}

// The directions in which points are judged: the rewards of the swept ARMs; of a single one, its KL too.
function frontAxes() {
  const arms = data.front.arms.map((arm) => [`${arm}, mean token reward`, (point) => point.rewards[arm]]);
  return arms.length > 1 ? arms : [["mean KL", (point) => point.kl], ...arms];
}

function setUpFront() {
  $("front-box").hidden = $("points").hidden = data.front === null;
  if (data.front === null) return;
  const axes = frontAxes();
  $("front-axes").hidden = axes.length < 3;
  ["front-x", "front-y"].forEach((id, place) => {
    fill($(id), axes.map(([title], index) => [index, title]));
    $(id).value = place;
    $(id).addEventListener("input", drawFront);
  });
  const volume = data.front.hypervolume === null ? "" : `; hypervolume ${number(data.front.hypervolume, 4)} above the worst of each`;
  $("front-caption").textContent = `Front of the sweep${volume}`;
  showPoints();
}

function drawFront() {
  if (data.front === null) return;
  const { points, on_front } = data.front, axes = frontAxes();
  const [[xTitle, x], [yTitle, y]] = [axes[$("front-x").value], axes[$("front-y").value]];
  const trace = (name, wanted, more) => {
    const found = points.filter((point, index) => on_front[index] === wanted && Number.isFinite(x(point)) && Number.isFinite(y(point)));
    found.sort((one, other) => x(one) - x(other));
    return { type: "scatter", name, x: found.map(x), y: found.map(y), text: found.map((point) => point.label.replace(/</g, "&lt;")),
      hovertemplate: "%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>", ...more };
  };
  const mode = axes.length > 2 ? "markers" : "lines+markers"; // of more directions than two, a line would lead to and fro
  const shown = [
    trace("dominated", false, { mode: "markers", marker: { color: COLORS[1], size: 8 } }),
    trace("front", true, { mode, line: { color: COLORS[0] }, marker: { color: COLORS[0], size: 10 } }),
  ].filter((found) => found.x.length);
  draw("front", shown, xTitle, yTitle);
}

function showPoints() {
  const front = data.front, kl = front.arms.length > 1 ? [] : ["KL"];
  const row = (cells, name) => element("tr", {}, ...cells.map((cell) => element(name, {}, cell)));
  const heads = [...front.arms.map((arm) => `weight of ${arm}`), ...data.arms.map((arm) => `${arm} per token`), ...kl, "tokens", "completions", "failed", ""];
  $("points").querySelector("thead").append(row(heads, "th"));
  $("points").querySelector("tbody").append(...front.points.map((point, index) => {
    const cells = [...front.arms.map((arm) => String(point.weights[arm])), ...data.arms.map((arm) => number(point.rewards[arm], 3)),
      ...kl.map(() => number(point.kl, 3)), number(point.tokens, 1), String(point.completions), String(point.failed),
      front.on_front[index] ? "on the front" : ""];
    const made = row(cells, "td");
    if (front.on_front[index]) made.className = "on-front";
    return made;
  }));
}

showSummary();
setUpControls();
setUpFront();
find();
