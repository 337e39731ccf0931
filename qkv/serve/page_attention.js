// Attention: what is read, which head is shown, and where in it one looks.

const TEXTS = [
  "The animal didn't cross the street because it was too tired.",
  "red green blue white black red green blue white",
  "The keys to the old cabinet are on the table, and the table is in the kitchen.",
];
let seen = null; // the summary: {part, parts, queries, keys, layers: [[{map, rows, columns, first, …}]]}
let head = null; // what is shown: {layer, head, weights: Float32Array, rows, columns, width, scale, …}
let spot = null; // {query, key}: where one looks
let reading = 0; // the last request; what an older one brings is dropped
let known = new Map(); // heads of this text that came before

const asking = () => ({ model: model.name, text: $("text").value, ...("cross" in model.parts ? { target: $("target").value, part: $("part").value } : {}) });

const read = async () => {
  if (!model) return;
  const mine = ++reading, body = asking();
  busyReading(true);
  $("counted").textContent = "reading…";
  try {
    const found = await askJson("look/attention", body);
    if (mine !== reading) return;
    [seen, head, spot, known] = [{ ...found, body }, null, null, new Map()];
    $("counted").textContent = plural(found.keys.length, "token") + ` of at most ${model.most_tokens}`;
    await drawGrid();
    const start = best("previous") ?? { layer: 0, head: 0 };
    await show(start.layer, start.head);
  } catch (error) {
    if (mine !== reading) return;
    busyReading(false);
    $("counted").textContent = "";
    $("grid").replaceChildren();
    forget();
    $("finders").replaceChildren(make("p", { className: "trouble", role: "alert" }, error.message));
  }
};

// What is still to be seen is of the text before.
const busyReading = on => [$("grid"), $("one")].forEach(box => box.setAttribute("aria-busy", on));

const forget = () => {
  [seen, head, spot] = [null, null, null];
  $("finders").replaceChildren();
  $("head-name").textContent = "One head";
  $("head-words").textContent = "Nothing was read yet.";
  $("said").replaceChildren();
  $("made").textContent = "";
  paint();
};

const show = async (layer, one) => {
  const mine = ++reading, name = layer + "." + one;
  press(layer, one);
  try {
    if (!known.has(name)) {
      const found = await askJson("look/attention", { ...seen.body, part: seen.part, layer, head: one });
      if (mine !== reading) return;
      known.set(name, { ...found, ...unpacked(found) });
    }
  } catch (error) {
    if (mine === reading) $("head-words").textContent = error.message;
    busyReading(false);
    return;
  }
  head = known.get(name);
  const about = seen.layers[layer][one], share = key => Math.round(about[key] * 100) + " %";
  const said = [["previous", "on the token before"], ["self", "on itself"], ["next", "on the token after"], ["first", "on the first token"], ["induction", "on what came after the same token before"]]
    .filter(([key]) => about[key] >= 0.005).sort(([a], [b]) => about[b] - about[a]).map(([key, words]) => share(key) + " " + words);
  $("head-name").textContent = `Layer ${layer}, head ${one}`;
  $("head-words").textContent = [...said, `entropy ${number(about.entropy, 2)} bits`].join(" · ");
  $("made").textContent = made(head);
  const query = spot && spot.query < head.rows ? spot.query : head.rows - 1;
  spot = { query, key: strongest(query) };
  $("numbers").open = false;
  busyReading(false);
  paint();
  inSight();
};

const MASKS = { Causal: "A token sees itself and what came before, so the upper right stays empty.", Full: "Every token sees every other, before and after it.", Window: "A token sees itself and a window of those before it." };
const made = one => {
  const root = Math.abs(one.scale - one.width ** -0.5) < 1e-6;
  const scale = root ? `d = ${one.width}, so scores are divided by √${one.width} ≈ ${number(Math.sqrt(one.width), 2)}.` : `scores are multiplied by ${number(one.scale, 4)}.`;
  const shared = one.kv_heads < one.heads ? ` ${one.heads} query heads share ${plural(one.kv_heads, "key head")}.` : "";
  return `Here ${scale} ${seen.part === "cross" ? "Queries are of the answer, keys of the source." : MASKS[one.mask] ?? ""}${shared}`;
};

// Rows without their zeros at the end → one array
const unpacked = found => {
  const rows = seen.queries.length, columns = seen.keys.length, weights = new Float32Array(rows * columns);
  found.weights.forEach((row, i) => row.forEach((weight, j) => { weights[i * columns + j] = weight * found.unit; }));
  return { weights, rows, columns };
};

// The key with the largest weight of a query; the first token only where there is nothing else.
const strongest = query => {
  let key = Math.min(1, head.columns - 1);
  for (let j = key; j < head.columns; j++) if (weight(query, j) > weight(query, key)) key = j;
  return weight(query, key) > 0 ? key : 0;
};
const weight = (query, key) => head.weights[query * head.columns + key];
const shownWeight = (query, key) => key === 0 && $("skip").checked && head.columns > 1 ? 0 : weight(query, key);

// ---------------------------------------------------------------- where one looks

const point = (query, key) => {
  if (!head || (spot && spot.query === query && spot.key === key)) return;
  spot = { query, key };
  drawMap();
  drawArcs();
  tellSpot();
};
// A token's label, and its place where there are others like it
const named = (tokens, at) => {
  const alike = tokens.filter(token => label(token) === label(tokens[at])).length > 1;
  return label(tokens[at]) + (alike ? [...String(at)].map(digit => "₀₁₂₃₄₅₆₇₈₉"[digit]).join("") : "");
};
const tellSpot = () => {
  if (!spot) return;
  const { query, key } = spot, row = [...Array(head.columns).keys()].map(j => ({ j, p: weight(query, j) }));
  const top = row.filter(one => one.p > 0).sort((a, b) => b.p - a.p).slice(0, 7);
  if (!top.some(one => one.j === key)) top.push(row[key]);
  $("said").replaceChildren(
    make("p", { className: "pair" }, make("b", { className: "q token" }, named(seen.queries, query)), " looks at ", make("b", { className: "k token" }, named(seen.keys, key)), " with weight ", make("b", { id: "weight" }, weight(query, key).toFixed(4))),
    bars(top.map(one => ({ text: named(seen.keys, one.j), p: one.p, marked: one.j === key }))));
};
const move = (event, steps) => {
  const step = steps[event.key];
  if (!step || !head || !spot) return;
  event.preventDefault();
  point(Math.max(0, Math.min(head.rows - 1, spot.query + step[0])), Math.max(0, Math.min(head.columns - 1, spot.key + step[1])));
};

const paint = () => {
  drawMap();
  drawArcs();
  tellSpot();
  $("numbers").hidden = !head;
};
for (const box of ["bright", "skip"]) $(box).onchange = paint;

$("numbers").ontoggle = async () => {
  const box = $("numbers").lastElementChild, mine = head;
  box.replaceChildren();
  if (!$("numbers").open || !head) return;
  const body = make("tbody"), names = seen.keys.map(token => make("th", { scope: "col" }, label(token)));
  box.append(make("table", {}, make("thead", {}, make("tr", {}, make("th"), ...names)), body));
  await inFrames(head.rows, i => {
    const cells = [...mine.weights.subarray(i * mine.columns, (i + 1) * mine.columns)];
    body.append(make("tr", {}, make("th", { scope: "row" }, label(seen.queries[i])), ...cells.map(one => make("td", {}, one ? one.toFixed(4) : ""))));
  }, () => mine === head && $("numbers").open);
};

// ---------------------------------------------------------------- what a person does

$("text").value = TEXTS[0];
$("read").onsubmit = event => { event.preventDefault(); read(); };
for (const field of ["text", "target"]) $(field).onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  read();
};
$("part").onchange = read;
$("examples").append(...TEXTS.map(text => act(text, () => { $("text").value = text; read(); })));
const lookAt = text => {
  $("text").value = text;
  seen = null;
  open("attention");
};
opened.attention = () => { if (!seen && model) read(); else paint(); };
chosen.push(() => {
  const parts = Object.keys(model.parts);
  $("answering").hidden = !("cross" in model.parts);
  $("part-of").hidden = parts.length < 2;
  $("part").replaceChildren(...parts.map(part => make("option", { value: part }, part === "cross" ? "cross-attention" : part)));
  forget();
});
addEventListener("resize", soon(100, () => view === "attention" && paint()));
repaint.push(() => { if (seen) { tintGrid(); paint(); } });
