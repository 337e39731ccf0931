// One head as a heat map: rows ask, columns are looked at.

const FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";

// 256 shades [r, g, b, 255] from no weight to all of it
const ramp = () => {
  const stops = ["m0", "m1", "m2", "m3"].map(colour);
  return Array.from({ length: 256 }, (_, i) => {
    const at = i / 255 * 3, from = Math.min(2, Math.floor(at)), part = at - from;
    return [...stops[from].map((value, c) => Math.round(value + (stops[from + 1][c] - value) * part)), 255];
  });
};
const largest = () => {
  if (!$("skip").checked) return 1;
  let top = 0;
  for (let i = 0; i < head.rows; i++) for (let j = 0; j < head.columns; j++) top = Math.max(top, shownWeight(i, j));
  return top || 1;
};
const brightness = share => $("bright").checked ? Math.sqrt(share) : share;

// A canvas of so many CSS pixels, sharp on this screen; gives its context, in CSS pixels.
const canvasOf = (canvas, width, height) => {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
};

let frameOf = null; // {left, top, cell}: where the cells are
let bitmap = { of: null, canvas: make("canvas") }; // the cells, one pixel each

const cells = () => {
  const of = [head, $("skip").checked, $("bright").checked, rgb(colour("m0"))].map(one => one === head ? `${head.part}${head.layer}.${head.head}` : one).join();
  if (bitmap.of === of && bitmap.head === head) return bitmap.canvas;
  const { rows, columns } = head, picture = new ImageData(columns, rows), shades = ramp(), top = largest();
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    picture.data.set(shades[Math.round(brightness(Math.min(1, shownWeight(i, j) / top)) * 255)], (i * columns + j) * 4);
  }
  Object.assign(bitmap.canvas, { width: columns, height: rows });
  bitmap.canvas.getContext("2d").putImageData(picture, 0, 0);
  bitmap = { of, head, canvas: bitmap.canvas };
  $("top").textContent = number(top, 2);
  return bitmap.canvas;
};

const short = token => {
  const text = label(token);
  return text.length > 14 ? text.slice(0, 13) + "…" : text;
};

const drawMap = () => {
  const canvas = $("map");
  canvas.hidden = !head;
  if (!head) return;
  const { rows, columns } = head, room = canvas.parentElement.clientWidth;
  const pen = canvas.getContext("2d");
  pen.font = "13px " + FONT;
  const widest = Math.max(...seen.queries.concat(seen.keys).slice(0, 400).map(token => pen.measureText(short(token)).width));
  const space = room > 640 ? room - 250 : room;
  const edge = Math.min(widest + 12, space * 0.3), cell = Math.min(30, (space - edge) / columns), named = cell >= 9;
  const margin = named ? edge : 16, size = named ? cell : Math.min(30, (space - margin) / columns);
  frameOf = { left: margin, top: margin, cell: size };
  const width = margin + size * columns + 1, height = margin + size * rows + 1, context = canvasOf(canvas, width, height);
  context.imageSmoothingEnabled = false;
  context.drawImage(cells(), margin, margin, size * columns, size * rows);
  context.strokeStyle = rgb(colour("line"));
  context.lineWidth = 1;
  context.strokeRect(margin, margin, size * columns, size * rows);
  if (named) names(context, margin, size); else titles(context, margin);
  if (spot) mark(context, margin, size);
};

const names = (context, margin, size) => {
  context.font = Math.min(13, size * 0.8) + "px " + FONT;
  context.textBaseline = "middle";
  seen.queries.forEach((token, i) => {
    context.fillStyle = rgb(colour(i === spot?.query ? "q" : "dim"));
    context.textAlign = "right";
    context.fillText(short(token), margin - 6, margin + size * (i + 0.5));
  });
  context.textAlign = "left";
  seen.keys.forEach((token, j) => {
    context.fillStyle = rgb(colour(j === spot?.key ? "k" : "dim"));
    context.save();
    context.translate(margin + size * (j + 0.5), margin - 6);
    context.rotate(-Math.PI / 2);
    context.fillText(short(token), 0, 0);
    context.restore();
  });
};
const titles = (context, margin) => {
  context.font = "11px " + FONT;
  context.textBaseline = "middle";
  context.fillStyle = rgb(colour("k"));
  context.fillText("keys →", margin, margin / 2);
  context.fillStyle = rgb(colour("q"));
  context.save();
  context.translate(margin / 2, margin + 60);
  context.rotate(-Math.PI / 2);
  context.fillText("← queries", 0, 0);
  context.restore();
};
const mark = (context, margin, size) => {
  const { query, key } = spot, y = margin + query * size, x = margin + key * size;
  context.lineWidth = 1;
  context.strokeStyle = rgb(colour("q"), 0.8);
  context.strokeRect(margin, y, size * head.columns, size);
  context.strokeStyle = rgb(colour("k"), 0.8);
  context.strokeRect(x, margin, size, size * head.rows);
  context.lineWidth = 2.5;
  context.strokeStyle = rgb(colour("ink"));
  context.strokeRect(x - 1, y - 1, size + 2, size + 2);
};

const pointAt = event => {
  if (!head || !frameOf) return;
  const box = $("map").getBoundingClientRect(), { left, top, cell } = frameOf;
  const key = Math.floor((event.clientX - box.left - left) / cell), query = Math.floor((event.clientY - box.top - top) / cell);
  if (query >= 0 && key >= 0 && query < head.rows && key < head.columns) point(query, key);
};
$("map").addEventListener("pointermove", pointAt);
$("map").addEventListener("pointerdown", pointAt);
$("map").addEventListener("keydown", event => move(event, { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9], End: [0, 1e9], PageUp: [-1e9, 0], PageDown: [1e9, 0] }));
