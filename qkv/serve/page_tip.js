// What is told of a thing that a person points at or walks to, and bars of probabilities.

const bar = p => {
  const made = make("i");
  made.style.setProperty("--w", p * 100 + "%");
  return made;
};
const bars = rows => make("div", { className: "bars" }, ...rows.flatMap(({ text, p, marked }) =>
  [make("span", { className: marked ? "token chosen" : "token" }, text), bar(p), make("span", {}, percent(p))]));

const hideTip = () => { $("tip").hidden = true; };
const showTip = (target, ...content) => {
  // A token that begins with a space may hang over a line's end; its longest part is where one looks.
  const tip = $("tip"), [at] = [...target.getClientRects()].sort((a, b) => b.width - a.width);
  if (!at) return;
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const above = at.top - height - 8, room = document.documentElement.clientWidth - width - 8;
  tip.style.left = Math.max(8, Math.min(at.left, room)) + "px";
  tip.style.top = (above > 56 ? above : at.bottom + 8) + "px";
};

// `tell(element)` gives what to show for elements of `box` that match, on hover and on keyboard focus.
const tips = (box, selector, tell) => {
  const show = event => {
    const found = event.target.closest(selector);
    if (found && box.contains(found)) showTip(found, ...tell(found));
  };
  box.addEventListener("pointerover", show);
  box.addEventListener("focusin", show);
  box.addEventListener("pointerout", hideTip);
  box.addEventListener("focusout", hideTip);
};
addEventListener("scroll", hideTip, { passive: true, capture: true });
