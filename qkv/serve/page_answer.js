// An answer as it comes: its tokens, tinted by probability, and what it took.

const HEAT = 3; // decades: a probability of 0.001 has the full tint
const heat = p => Math.min(1, Math.max(0, -Math.log10(Math.max(p, 1e-9)) / HEAT));

class Answer {
  constructor(began = "") {
    this.text = "";
    this.count = 0;
    this.logprobs = [];
    this.pending = []; // tokens whose text has not come yet
    this.parts = []; // tokens that are parts of a character, whose text comes with its last one
    this.held = ""; // text whose token has not come yet
    this.queue = []; // spans for the next frame
    this.started = performance.now();
    this.told = new WeakMap();
    this.says = make("div", { className: "says writing", role: "group", ariaLabel: "Answer. Arrow keys walk over its tokens." });
    if (began) this.says.append(make("span", { className: "began" }, began));
    this.facts = make("div", { className: "facts-line" });
    this.waiting = make("span", { className: "waiting" }, "reading…");
    this.says.append(this.waiting);
    this.box = make("article", { className: "answer" }, this.says, this.facts);
    walk(this.says, () => [...this.says.querySelectorAll(".t")]);
    tips(this.says, ".t", span => this.tell(this.told.get(span)));
  }

  // What came: a text, and the tokens since the last one, which may be more or fewer than the text has.
  take(text, tokens) {
    this.first ??= performance.now();
    this.last = performance.now();
    this.text += text;
    this.held += text;
    this.pending.push(...tokens);
    this.count += tokens.length;
    for (const token of tokens) if (token.logprob !== null) this.logprobs.push(token.logprob);
    while (this.pending.length) {
      const next = this.pending[0];
      if (next.text && this.held.startsWith(next.text)) this.put(next, next.text);
      else if (next.text.startsWith(this.held)) break; // its text is still to come
      else this.put(next, this.pending.length > 1 ? "" : this.held); // spelled otherwise in the text
      this.pending.shift();
    }
    if (!tokens.length && !this.pending.length && this.held) this.put(null, this.held);
  }

  put(token, text) {
    this.held = this.held.slice(text.length);
    if (token) this.parts.push(token);
    if (!text) return;
    if (!this.queue.length) frame().then(() => this.flush());
    const span = make("span", this.parts.length ? { className: "t", tabIndex: -1 } : {}, text);
    if (this.parts.length) {
      const least = Math.min(...this.parts.map(part => part.logprob ?? 0));
      span.style.setProperty("--heat", (heat(Math.exp(least)) * 100).toFixed(1) + "%");
      this.told.set(span, this.parts);
    }
    this.parts = [];
    this.queue.push(span);
  }

  flush() {
    const page = document.documentElement, low = page.scrollHeight - page.clientHeight - page.scrollTop < 80;
    this.waiting.remove();
    if (this.queue.length && !this.says.querySelector(".t")) this.queue[0].tabIndex = 0;
    this.says.append(...this.queue);
    this.queue = [];
    if (low) page.scrollTop = page.scrollHeight;
  }

  tell(tokens) {
    return tokens.flatMap(token => {
      const p = token.logprob === null ? null : Math.exp(token.logprob);
      const rows = token.top.map(one => ({ text: visible(one.text), p: Math.exp(one.logprob), marked: one.text === token.text }));
      if (p !== null && !rows.some(row => row.marked)) rows.push({ text: visible(token.text), p, marked: true });
      const drawn = rows.length && !rows[0].marked ? " (not the likeliest: it was drawn)" : "";
      return [make("b", {}, visible(token.text)), p === null ? "" : ` was given ${percent(p)}${drawn}`, bars(rows)];
    });
  }

  // `how`: why it ended; `usage` of the API, if it came; `acts`: buttons.
  close(how, usage, acts) {
    if (this.held) this.put(null, this.held);
    this.flush();
    this.says.classList.remove("writing");
    const count = usage?.completion_tokens ?? this.count, facts = [];
    const fact = (value, words) => facts.push(make("span", {}, make("b", {}, value), " " + words));
    if (count) fact(number(count), count === 1 ? "token" : "tokens");
    if (this.count > 2 && this.last > this.first) fact(number((this.count - 1) / (this.last - this.first) * 1000, 1), "a second");
    if (this.first) fact(number((this.first - this.started) / 1000, 2) + " s", "to the first");
    if (usage?.prompt_tokens_details?.cached_tokens) fact(number(usage.prompt_tokens_details.cached_tokens), "of the prompt’s " + number(usage.prompt_tokens) + " already read");
    if (this.logprobs.length) {
      const mean = this.logprobs.reduce((sum, one) => sum + one, 0) / this.logprobs.length;
      facts.push(make("span", { title: "exp(−mean log-probability): of how many tokens it wavered between, on average" }, "perplexity ", make("b", {}, number(Math.exp(-mean), 2))));
    }
    facts.push(make("span", { className: "how" }, how));
    this.facts.replaceChildren(...facts, ...acts);
  }

  fail(error) {
    this.waiting.remove();
    this.flush();
    this.says.classList.remove("writing");
    this.box.append(make("p", { className: "trouble", role: "alert" }, error.message));
  }
}

// Tokens of a chunk, in both shapes that the API has.
const scored = choice => {
  const found = choice.logprobs;
  if (found?.content) return found.content.map(one => ({ text: one.token, logprob: one.logprob, top: (one.top_logprobs ?? []).map(other => ({ text: other.token, logprob: other.logprob })) }));
  return (found?.tokens ?? []).map((text, i) => ({ text, logprob: found.token_logprobs[i], top: Object.entries(found.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({ text: other, logprob })).sort((a, b) => b.logprob - a.logprob) }));
};

// The events of a stream of `data:` lines, parsed.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
