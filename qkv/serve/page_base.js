// What all views use: elements, the server and its key, the theme, tabs, models.

const $ = id => document.getElementById(id);

const make = (tag, props = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "data") Object.assign(made.dataset, value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
};

// Storage may be forbidden; then things last as long as the page.
const memory = new Map();
const recall = (store, name) => {
  try { return window[store].getItem("qkv-" + name); } catch { return memory.get(name) ?? null; }
};
const keep = (store, name, value) => {
  memory.set(name, value);
  try { window[store].setItem("qkv-" + name, value); } catch { /* memory has it */ }
};

const percent = p => p >= 0.9995 ? "100 %" : p >= 0.1 ? (p * 100).toFixed(1) + " %" : p >= 0.0001 ? (p * 100).toFixed(2) + " %" : "< 0.01 %";
const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const SIGNS = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍" };
const visible = text => text.replace(/[ \n\t\r]/g, sign => SIGNS[sign]);
const label = token => token.text.trim() || visible(token.text) || "…"; // for axes, where a space before a word is noise

// ---------------------------------------------------------------- the server

class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const ask = async (path, body, signal) => {
  const key = recall("sessionStorage", "key"), headers = {};
  if (key) headers.Authorization = "Bearer " + key;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Does qkv serve still run?", 0);
  }
  if (answer.status === 401) {
    await unlock(Boolean(key));
    signal?.throwIfAborted();
    return ask(path, body, signal);
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Refused(said?.error?.message ?? `The server refused (${answer.status}).`, answer.status);
  }
  return answer;
};
const askJson = async (...what) => (await ask(...what)).json();

let unlocking = null;
const unlock = wrong => {
  unlocking ??= new Promise((opened, refused) => {
    const dialog = $("locked"), field = $("key");
    if (wrong) $("locked-words").textContent = "The server does not know that key. Try another.";
    field.value = "";
    dialog.returnValue = "no"; // what Escape leaves
    dialog.onclose = () => {
      unlocking = null;
      if (dialog.returnValue !== "ok" || !field.value) return refused(new Refused("This needs the server’s key.", 401));
      keep("sessionStorage", "key", field.value.trim());
      field.value = "";
      opened();
    };
    dialog.showModal();
  });
  return unlocking;
};

const trouble = (error, again) => {
  $("trouble").hidden = !error;
  $("trouble").replaceChildren(...error ? [error.message] : []);
  if (error && again) $("trouble").append(make("button", { className: "quiet", onclick: () => { trouble(null); again(); } }, "Try again"));
};

// ---------------------------------------------------------------- the theme

const THEMES = ["auto", "light", "dark"], repaint = [];
const probe = make("i", { hidden: true });
document.body.append(probe);
// [r, g, b] of a colour of the style sheet, as it is now
const colour = name => {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
};
const rgb = ([r, g, b], alpha = 1) => `rgb(${r} ${g} ${b} / ${alpha})`;

const setTheme = theme => {
  document.documentElement.dataset.theme = theme;
  $("theme").lastElementChild.textContent = theme[0].toUpperCase() + theme.slice(1);
  $("theme").setAttribute("aria-label", "Colours: " + (theme === "auto" ? "as the system’s" : theme));
  keep("localStorage", "theme", theme);
  repaint.forEach(paint => paint());
};
$("theme").onclick = () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaint.forEach(paint => paint()));
setTheme(THEMES.includes(recall("localStorage", "theme")) ? recall("localStorage", "theme") : "auto");

// ---------------------------------------------------------------- time

const frame = () => new Promise(next => document.hidden ? setTimeout(next, 16) : requestAnimationFrame(next));
// Does `each(i)` for i < count, a few milliseconds a frame, as long as `still()`; so a long prompt never blocks.
const inFrames = async (count, each, still) => {
  for (let i = 0; i < count;) {
    const until = performance.now() + 8;
    while (i < count && performance.now() < until) each(i++);
    if (i < count) await frame();
    if (!still()) return false;
  }
  return true;
};
const soon = (wait, act) => {
  let timer = 0;
  return (...what) => { clearTimeout(timer); timer = setTimeout(() => act(...what), wait); };
};

// One stop for Tab, arrow keys inside: `items()` in order, `across` of them a row (0: left and right only).
const walk = (box, items, across = () => 0) => box.addEventListener("keydown", event => {
  const all = items(), at = all.indexOf(document.activeElement), row = across();
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row, Home: -at, End: all.length - 1 - at };
  const step = steps[event.key], to = all[at + step];
  if (at < 0 || !step) return;
  event.preventDefault();
  if (!to) return;
  all[at].tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
});

// ---------------------------------------------------------------- tabs

const opened = {}, VIEWS = ["chat", "attention", "tokens", "engine"];
let view = "";
const open = name => {
  view = name;
  for (const one of VIEWS) {
    const tab = $("tab-" + one), here = one === name;
    $(one).hidden = !here;
    tab.setAttribute("aria-selected", here);
    tab.tabIndex = here ? 0 : -1;
  }
  history.replaceState(null, "", "#/" + name); // no element has such a name, so nothing is scrolled to
  scrollTo(0, 0);
  opened[name]?.();
};
const tabs = VIEWS.map(one => $("tab-" + one));
tabs.forEach((tab, i) => { tab.onclick = () => open(VIEWS[i]); tab.onfocus = () => view !== VIEWS[i] && tab.matches(":focus-visible") && open(VIEWS[i]); });
walk(document.querySelector("nav"), () => tabs);

// ---------------------------------------------------------------- models

let models = [], model = null;
const chosen = []; // what to do when another model is chosen
const choose = name => {
  model = models.find(one => one.name === name) ?? models[0] ?? null;
  if (!model) return;
  $("model").value = model.name;
  document.title = model.name + " · qkv";
  chosen.forEach(act => act());
};
const begin = async () => {
  try {
    models = await askJson("look/models");
  } catch (error) {
    $("model").replaceChildren(make("option", {}, "no model"));
    return trouble(error, begin);
  }
  $("model").replaceChildren(...models.map(one => make("option", { value: one.name }, one.name)));
  $("model").disabled = models.length < 2;
  choose(models[0]?.name);
  opened[view]?.();
};
$("model").onchange = event => { choose(event.target.value); opened[view]?.(); };
