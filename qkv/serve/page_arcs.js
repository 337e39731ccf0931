// One head as arcs over the tokens, from the key that is looked at to the query that looks. Only what is in sight is drawn.

const ARC = { faint: 0.02, most: 110, gap: 14, line: 24 };

// Where tokens stand: middles of them, and the length of the row
const placed = (pen, tokens) => {
  let x = ARC.gap;
  const middles = tokens.map(token => {
    const width = pen.measureText(short(token)).width, middle = x + width / 2;
    x += width + ARC.gap;
    return middle;
  });
  return { middles, length: x };
};

let spread = null; // {of, queries, keys, length, ahead}: of the text that is shown
const layout = pen => {
  if (spread?.of === seen) return spread;
  pen.font = "14px " + FONT;
  const queries = placed(pen, seen.queries), keys = seen.part === "cross" ? placed(pen, seen.keys) : queries;
  spread = { of: seen, queries: queries.middles, keys: keys.middles, length: Math.max(queries.length, keys.length), cross: seen.part === "cross" };
  return spread;
};

const drawArcs = () => {
  const box = $("arcs"), canvas = box.firstElementChild;
  box.hidden = !head;
  if (!head) return;
  const { queries, keys, length, cross } = layout(canvas.getContext("2d")), width = box.clientWidth;
  const ahead = !cross && head.mask === "Full", high = Math.min(ARC.most, 30 + length / 5);
  const height = cross ? high + 2 * ARC.line : high * (ahead ? 2 : 1) + ARC.line + 6;
  box.lastElementChild.style.width = length + "px";
  const context = canvasOf(canvas, width, height), from = box.scrollLeft;
  context.translate(-from, 0);
  const upper = cross ? ARC.line : high + 3, lower = cross ? height - ARC.line : upper + ARC.line;
  const top = largest(), drawn = (i, j) => arc(context, i, j, shownWeight(i, j) / top, { queries, keys, upper, lower, high, cross });
  for (let i = 0; i < head.rows; i++) if (i !== spot?.query) eachArc(i, top, from, width, drawn);
  if (spot) eachArc(spot.query, top, from, width, drawn);
  words(context, seen.queries, queries, cross ? upper - ARC.line / 2 : upper + ARC.line / 2, spot?.query, "q", cross ? -1 : spot?.key);
  if (cross) words(context, seen.keys, keys, lower + ARC.line / 2, spot?.key, "k", -1);
};

const eachArc = (i, top, from, width, drawn) => {
  const { queries, keys } = spread;
  for (let j = 0; j < head.columns; j++) {
    if (shownWeight(i, j) < ARC.faint * top) continue;
    if (Math.max(queries[i], keys[j]) < from || Math.min(queries[i], keys[j]) > from + width) continue;
    drawn(i, j);
  }
};

const arc = (context, i, j, share, { queries, keys, upper, lower, high, cross }) => {
  const x = queries[i], to = keys[j], mine = i === spot?.query, strength = brightness(Math.min(1, share));
  const colours = context.createLinearGradient(to, 0, x + (to === x ? 1 : 0), 0), alpha = strength * (mine ? 1 : 0.28);
  colours.addColorStop(0, rgb(colour("k"), alpha));
  colours.addColorStop(1, rgb(colour("q"), alpha));
  context.strokeStyle = colours;
  context.lineWidth = (mine ? 1 : 0.6) + strength * (mine ? 3.5 : 1.6);
  context.beginPath();
  if (cross) {
    const middle = (upper + lower) / 2;
    context.moveTo(x, upper);
    context.bezierCurveTo(x, middle, to, middle, to, lower);
  } else if (i === j) {
    context.arc(x, upper - 5, 4, 0, 7);
  } else {
    const rise = Math.min(high * 1.3, 12 + Math.abs(x - to) * 0.55), back = j < i;
    const base = back ? upper : lower, tip = back ? base - rise : base + rise;
    context.moveTo(to, base);
    context.bezierCurveTo(to, tip, x, tip, x, base);
  }
  context.stroke();
};

const words = (context, tokens, middles, y, at, tone, other) => {
  context.font = "14px " + FONT;
  context.textAlign = "center";
  context.textBaseline = "middle";
  tokens.forEach((token, i) => {
    context.fillStyle = rgb(colour(i === at ? tone : i === other ? "k" : "ink"));
    context.fillText(short(token), middles[i], y);
    if (i === at) context.fillRect(middles[i] - context.measureText(short(token)).width / 2, y + 10, context.measureText(short(token)).width, 2);
  });
};

const lookFrom = query => point(query, strongest(query));
$("arcs").addEventListener("pointermove", event => {
  if (!head || !spread || event.pointerType === "touch") return;
  nearest(event);
});
$("arcs").addEventListener("click", event => head && spread && nearest(event));
const nearest = event => {
  const x = event.clientX - $("arcs").getBoundingClientRect().left + $("arcs").scrollLeft, { queries } = spread;
  let query = 0;
  queries.forEach((middle, i) => { if (Math.abs(middle - x) < Math.abs(queries[query] - x)) query = i; });
  lookFrom(query);
};
$("arcs").addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
  if (!step || !head || !spot) return;
  event.preventDefault();
  lookFrom(Math.max(0, Math.min(head.rows - 1, spot.query + step)));
  inSight();
});
// Scrolls to the token that looks.
const inSight = () => {
  const x = spread.queries[spot.query], box = $("arcs");
  if (x < box.scrollLeft + 60 || x > box.scrollLeft + box.clientWidth - 60) box.scrollLeft = x - box.clientWidth / 2;
};
$("arcs").addEventListener("scroll", () => head && drawArcs(), { passive: true });
