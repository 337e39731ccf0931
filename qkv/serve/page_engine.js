// The engine, live: asked once a second while its view is open and the page is in sight.

const SPAN = 120; // seconds on the charts
let ticking = 0, past = []; // [{at, state}] of the model that is shown

const tile = (value, words) => make("div", { className: "tile" }, make("b", {}, value), make("span", {}, words));

const tick = async () => {
  clearTimeout(ticking);
  if (view !== "engine" || document.hidden || !model) return;
  try {
    const states = await askJson("look/state"), state = states.find(one => one.name === model.name);
    trouble(null);
    if (state) showState(state);
  } catch (error) {
    trouble(error);
  }
  clearTimeout(ticking);
  ticking = setTimeout(tick, 1000);
};

const showState = state => {
  const now = performance.now() / 1000;
  past = [...past.filter(one => one.at > now - SPAN - 2), { at: now, state }];
  $("tiles").replaceChildren(
    tile(number(state.tokens_per_second, 1), "tokens a second"),
    tile(number(state.running), state.running === 1 ? "sequence runs" : "sequences run"),
    tile(number(state.waiting), state.waiting === 1 ? "waits" : "wait"),
    tile(state.pages ? number(state.usage * 100) + " %" : "–", "of the cache in use"),
    tile(state.alive ? state.ready ? "ready" : "warming up" : "stopped", number(state.heartbeat, 1) + " s since it last turned"));
  const parts = [["used", state.used], ["cached", state.cached]].map(([name, count]) => {
    const part = make("i", { className: name });
    part.style.setProperty("--w", state.pages ? count / state.pages * 100 + "%" : "0");
    return part;
  });
  $("bar").replaceChildren(...parts);
  $("bar").setAttribute("aria-label", `${state.used} pages in use, ${state.cached} kept, ${state.pages} in all`);
  $("page-words").textContent = `${number(state.used)} of ${plural(state.pages, "page")} in use, ${number(state.cached)} kept. A page holds the keys and values of ${state.page} tokens. `
    + "A sequence takes pages as it grows, so at most one of them is partly empty; prompts that begin alike share theirs.";
  const hit = state.prefix_queries ? state.prefix_hits / state.prefix_queries : 0, ended = Object.entries(state.finished);
  const facts = [
    ["prompt tokens", number(state.prompt_tokens)], ["generated tokens", number(state.generated_tokens)],
    ["of prompts, already read", percentOf(hit)], ["requests", number(state.submitted)],
    ...ended.map(([reason, count]) => ["ended: " + reason, number(count)]),
    ["steps", number(state.steps)], ["preemptions", number(state.preemptions)],
    ["empty slots in pages", percentOf(state.waste)], ["on average", percentOf(state.mean_waste)], ["computed by", state.step],
  ];
  $("totals").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  drawCharts();
};
const percentOf = share => number(share * 100, 1) + " %";

const CHARTS = [
  ["speed", [[one => one.tokens_per_second, "accent"]]],
  ["queue", [[one => one.running, "accent"], [one => one.waiting, "k"]]],
  ["room", [[one => one.used, "accent"]]],
];
const drawCharts = () => CHARTS.forEach(([id, lines]) => drawChart($(id), lines));

const drawChart = (canvas, lines) => {
  const width = canvas.parentElement.clientWidth - 36, height = 130, now = performance.now() / 1000;
  if (width <= 0) return;
  const context = canvasOf(canvas, width, height), most = Math.max(1, ...past.flatMap(({ state }) => lines.map(([of]) => of(state))));
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find(one => one * 3 >= most) ?? 1e4, top = Math.ceil(most / step) * step;
  const x = at => 40 + (width - 44) * (1 - (now - at) / SPAN), y = value => height - 20 - (height - 30) * value / top;
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (let line = 0; line <= top; line += step) {
    context.fillStyle = rgb(colour("dim"));
    context.textAlign = "right";
    context.fillText(number(line), 32, y(line));
    context.fillStyle = rgb(colour("line"));
    context.fillRect(40, y(line), width - 44, 1);
  }
  context.fillStyle = rgb(colour("dim"));
  for (const [ago, words, align] of [[SPAN, "2 min ago", "left"], [0, "now", "right"]]) {
    context.textAlign = align;
    context.fillText(words, x(now - ago), height - 7);
  }
  const shown = past.filter(one => one.at >= now - SPAN);
  if (shown.length) for (const [of, tone] of lines) drawLine(context, shown.map(one => [x(one.at), y(of(one.state))]), y(0), tone);
};

const drawLine = (context, points, floor, tone) => {
  const line = new Path2D();
  points.forEach(([x, y], i) => line[i ? "lineTo" : "moveTo"](x, y));
  const area = new Path2D(line);
  area.lineTo(points.at(-1)[0], floor);
  area.lineTo(points[0][0], floor);
  context.fillStyle = rgb(colour(tone), 0.13);
  context.fill(area);
  context.strokeStyle = rgb(colour(tone));
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.stroke(line);
};

opened.engine = tick;
document.addEventListener("visibilitychange", tick);
chosen.push(() => { past = []; });
repaint.push(() => view === "engine" && drawCharts());
addEventListener("resize", soon(100, () => view === "engine" && drawCharts()));

// ---------------------------------------------------------------- all parts are there

const wanted = location.hash.slice(2);
open(VIEWS.includes(wanted) ? wanted : "chat");
begin();
