// The tokenizer's view of a text, as one types.

const BLOCK = 120; // pieces that are laid out together, so that those of a long text are not laid out again and again
let cutting = 0; // the last request; what an older one brings is dropped
const told = new WeakMap();

const cut = async () => {
  if (!model) return;
  const mine = ++cutting, text = $("typed").value;
  try {
    const found = await askJson("look/tokens", { model: model.name, text, chat: $("chatted").checked && model.chat });
    if (mine !== cutting) return;
    const { tokens, characters, bytes } = found, parts = [plural(tokens.length, "token"), plural(characters, "character"), plural(bytes, "byte")];
    if (tokens.length && characters) parts.push(number(characters / tokens.length, 2) + " characters a token");
    $("counts").textContent = parts.join(" · ") + ` · the vocabulary has ${number(found.vocab)}`;
    $("pieces").replaceChildren();
    let block = null;
    await inFrames(tokens.length, i => {
      if (i % BLOCK === 0) $("pieces").append(block = make("div", { className: "block" }));
      block.append(...piece(tokens[i], i, tokens));
    }, () => mine === cutting);
  } catch (error) {
    if (mine !== cutting) return;
    $("pieces").replaceChildren(make("p", { className: "trouble", role: "alert" }, error.message));
    $("counts").textContent = "";
  }
};

const piece = (token, i, all) => {
  // A character that takes several tokens is shown with its first.
  const again = token.start !== null && i > 0 && token.start < all[i - 1].end;
  const text = again ? "…" : token.text || "…";
  const signs = [...text].map(sign => SIGNS[sign] && !token.special ? make("i", {}, SIGNS[sign]) : sign);
  const made = make("span", { className: token.special ? "piece special" : "piece", tabIndex: i ? -1 : 0 }, make("span", {}, ...signs), make("small", {}, String(token.id)));
  told.set(made, token);
  return !token.special && text.includes("\n") ? [made, make("span", { className: "break" })] : [made];
};

const tellPiece = token => [
  make("b", {}, token.token), ` is number ${number(token.id)}`,
  make("div", { className: "hint" }, token.special ? "special: no text that one types becomes it"
    : token.start === null ? "of the template and the message" : `bytes ${token.start} to ${token.end} of the text`),
];

$("typed").value = recall("sessionStorage", "typed") ?? "Tokenizers cut unbelievably rare words, 12345 and 😀 into parts.\n<|im_start|> is only text here.";
const cutSoon = soon(120, cut);
$("typed").oninput = () => { keep("sessionStorage", "typed", $("typed").value); cutSoon(); };
$("chatted").onchange = cut;
opened.tokens = cut;
chosen.push(() => { $("as-chat").hidden = !model.chat; });
tips($("pieces"), ".piece", made => tellPiece(told.get(made)));
walk($("pieces"), () => [...$("pieces").querySelectorAll(".piece")]);
