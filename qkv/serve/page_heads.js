// All heads at a glance: a small map each, and the best of their kinds.

const FINDERS = [
  ["previous", "the token before", 1], ["first", "the first token", 1], ["self", "itself", 1], ["next", "the token after", 1], ["induction", "after the same token", 1],
   ["entropy", "narrowest", -1], ["entropy", "widest", 1],
];

// Of `layers`, the head whose `name` is largest (sign 1) or smallest (−1): {layer, head, value}
const best = (name, sign = 1) => {
  let found = null;
  seen.layers.forEach((heads, layer) => heads.forEach((one, i) => {
    if (one[name] !== undefined && (!found || (one[name] - found.value) * sign > 0)) found = { layer, head: i, value: one[name] };
  }));
  return found;
};

const drawGrid = async () => {
  const now = seen, across = Math.max(...now.layers.map(heads => heads.length));
  $("grid").style.gridTemplateColumns = `auto repeat(${across}, minmax(1.25rem, 2.75rem))`;
  $("grid").replaceChildren();
  $("finders").replaceChildren(...FINDERS.map(([name, words, sign]) => [best(name, sign), words, name])
    .filter(([found, , name]) => found && (name === "entropy" || found.value >= 0.15))
    .map(([found, words, name]) => make("button", { type: "button", data: { head: found.layer + "." + found.head }, onclick: () => show(found.layer, found.head) },
      words + " ", make("small", {}, `${found.layer}.${found.head} · ` + (name === "entropy" ? number(found.value, 1) + " bits" : Math.round(found.value * 100) + " %")))));
  const all = now.layers.flatMap((heads, layer) => heads.map((one, i) => [one, layer, i])), shades = ramp();
  return inFrames(all.length, n => {
    const [one, layer, i] = all[n], canvas = make("canvas", { width: one.columns, height: one.rows });
    if (i === 0) $("grid").append(make("span", { className: "layer", ariaHidden: "true" }, String(layer)));
    const button = make("button", { type: "button", tabIndex: n ? -1 : 0, title: `layer ${layer}, head ${i}`, ariaLabel: `Layer ${layer}, head ${i}`, data: { head: layer + "." + i } }, canvas);
    if (i === 0) button.style.gridColumn = "2";
    $("grid").append(button);
    tint(canvas, one, shades);
  }, () => now === seen);
};

const tint = (canvas, one, shades) => {
  const picture = new ImageData(one.columns, one.rows);
  one.map.forEach((value, i) => picture.data.set(shades[Math.round(Math.sqrt(value / 255) * 255)], i * 4));
  canvas.getContext("2d").putImageData(picture, 0, 0);
};
const tintGrid = () => {
  const shades = ramp(), all = seen.layers.flat();
  $("grid").querySelectorAll("canvas").forEach((canvas, i) => tint(canvas, all[i], shades));
};

// Marks what is shown, in the grid and among the finders.
const press = (layer, which) => {
  const name = layer + "." + which;
  for (const button of document.querySelectorAll("#grid button, #finders button")) {
    const here = button.dataset.head === name;
    button.setAttribute("aria-pressed", here);
    if (button.parentElement !== $("grid")) continue;
    button.tabIndex = here ? 0 : -1;
    if (here) { // into view, without moving the page
      const top = button.offsetTop;
      if (top < $("grid").scrollTop || top + button.offsetHeight > $("grid").scrollTop + $("grid").clientHeight) $("grid").scrollTop = top - $("grid").clientHeight / 2;
    }
  }
};

const showSoon = soon(60, show);
$("grid").addEventListener("focusin", event => {
  const name = event.target.closest("button")?.dataset.head.split(".").map(Number);
  if (name && event.target.getAttribute("aria-pressed") !== "true") showSoon(...name);
});
$("grid").addEventListener("click", event => { // some browsers give a clicked button no focus
  const name = event.target.closest("button")?.dataset.head.split(".").map(Number);
  if (name) showSoon(...name);
});
walk($("grid"), () => [...$("grid").querySelectorAll("button")], () => seen?.layers[0].length ?? 0);
