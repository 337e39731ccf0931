// The chat: settings, messages, streaming and stopping.

const FIELDS = [
  ["system", "System", "what the model is told before the conversation", { className: "wide" }],
  ["temperature", "Temperature", "logits are divided by it before the softmax; 0 takes the likeliest token", { min: 0, max: 2, step: 0.1 }],
  ["top_p", "top p", "draw from the fewest tokens whose probabilities come to p", { min: 0.01, max: 1, step: 0.01 }],
  ["top_k", "top k", "draw from the k likeliest; 0: from all", { min: 0, max: 1000, step: 1 }],
  ["min_p", "min p", "draw from those at least so likely, compared to the likeliest", { min: 0, max: 1, step: 0.01 }],
  ["repetition_penalty", "Repetition", "above 1 makes tokens that were there less likely", { min: 0.5, max: 2, step: 0.05 }],
  ["max_tokens", "Longest", "tokens of an answer", { min: 1, max: 100000, step: 1 }],
  ["seed", "Seed", "the same seed draws the same answer", { min: 0, max: 2 ** 53 - 1, step: 1 }],
  ["stop", "Stop at", "a text that ends the answer", { className: "wide" }],
];
const OPENERS = {
  chat: ["Why is the sky blue?", "Write a haiku about attention.", "Explain a softmax to a child."],
  text: ["The capital of France is", "Once upon a time", "def fibonacci(n):"],
};
let messages = []; // {role, content}
let writing = null; // the AbortController of the answer that is being written

const inputs = new Map(FIELDS.map(([name, title, words, { className = "", ...range }]) => {
  const number = "min" in range;
  const input = make("input", { ...range, type: number ? "number" : "text", name, value: recall("localStorage", name) ?? "", placeholder: number ? "default" : "" });
  input.onchange = () => keep("localStorage", name, input.value);
  $("fields").append(make("label", { className }, title, input, make("small", {}, words)));
  return [name, input];
}));
const setting = name => inputs.get(name).value.trim();
const settings = () => Object.fromEntries(FIELDS.map(([name]) => name).filter(name => name !== "system" && setting(name) !== "")
  .map(name => [name, name === "stop" ? [setting(name).replaceAll("\\n", "\n")] : Number(setting(name))]));
$("reset").onclick = () => inputs.forEach((input, name) => { input.value = ""; keep("localStorage", name, ""); });
$("settings").open = innerWidth > 960;

// Does an answer stand by itself? Else it goes on where the text ends.
const answers = () => model.chat || "cross" in model.parts;

// The path and the body of a request, and what of it begins the answer's text.
const request = text => {
  const asked = { model: model.name, stream: true, stream_options: { include_usage: true }, ...settings() };
  if (!model.chat) return ["v1/completions", { ...asked, prompt: text, logprobs: 5 }, answers() ? "" : text];
  const system = setting("system") ? [{ role: "system", content: setting("system") }] : [];
  return ["v1/chat/completions", { ...asked, messages: [...system, ...messages], logprobs: true, top_logprobs: 5 }, ""];
};

const write = async text => {
  const mine = new AbortController(), [path, body, began] = request(text), answer = new Answer(began);
  writing = mine;
  busy(true);
  $("messages").append(answer.box);
  answer.box.scrollIntoView({ block: "end" });
  let how = "ended by the server", usage = null;
  try {
    const reply = await ask(path, body, mine.signal);
    for await (const event of events(reply.body)) {
      if (event.error) throw new Refused(event.error.message, 500);
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      if (!choice) continue;
      answer.take(choice.delta?.content ?? choice.text ?? "", scored(choice));
      how = REASONS[choice.finish_reason] ?? how;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      answer.fail(error instanceof Refused ? error : new Refused("The connection broke off.", 0));
      if (answer.text) messages.push({ role: "assistant", content: answer.text });
      else takeBack(text);
      busy(false, mine);
      return;
    }
    how = "stopped";
  }
  if (writing === mine) messages.push({ role: "assistant", content: answer.text });
  const acts = [act("copy", () => navigator.clipboard?.writeText(answer.text))];
  acts.push(act("see its attention", () => lookAt(text + (began ? "" : "\n") + answer.text)));
  answer.close(how, usage, acts);
  busy(false, mine);
};
const REASONS = { stop: "finished", length: "cut at the longest that was allowed" };
const act = (words, onclick) => make("button", { type: "button", onclick }, words);

// What was refused is not part of the conversation; it goes back to where it was typed.
const takeBack = text => {
  messages.pop();
  if (!$("prompt").value) $("prompt").value = text;
  grow();
};

const busy = (on, mine = writing) => {
  if (mine !== writing) return; // another answer is being written by now
  if (!on) writing = null;
  $("messages").setAttribute("aria-busy", on);
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("fresh").disabled = !messages.length && !on;
};

const say = text => {
  if (!text.trim() || writing || !model) return;
  $("messages").querySelector(".empty")?.remove();
  messages.push({ role: "user", content: text });
  if (answers()) $("messages").append(make("div", { className: "user" }, text));
  $("prompt").value = "";
  grow();
  write(text);
};

// ---------------------------------------------------------------- what a person does

const empty = $("messages").firstElementChild;
const fresh = () => {
  writing?.abort();
  writing = null;
  messages = [];
  $("messages").replaceChildren(empty);
  busy(false);
  $("prompt").focus();
};
const grow = () => {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = field.scrollHeight + "px";
};
$("prompt").oninput = grow;
$("prompt").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  say($("prompt").value);
};
$("say").onsubmit = event => { event.preventDefault(); say($("prompt").value); };
$("stop").onclick = () => { writing?.abort(); $("prompt").focus(); };
$("fresh").onclick = fresh;
$("tinted").onchange = event => $("messages").classList.toggle("plain", !event.target.checked);
document.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  hideTip();
  if (!document.querySelector("dialog[open]")) writing?.abort();
});

opened.chat = () => { if (matchMedia("(pointer: fine)").matches) $("prompt").focus({ preventScroll: true }); };
chosen.push(() => {
  if (messages.length || writing) fresh();
  const mute = !model.generates;
  $("chat-title").textContent = mute ? "This model reads and does not write" : model.chat ? "Talk to the model" : answers() ? "Give the model a text" : "Begin a text, and the model goes on";
  $("chat-words").textContent = mute ? "Look at its attention and its tokens instead." : "Every token of an answer is tinted by how sure the model was of it. Point at one, or walk with the arrow keys, to see what else it could have said.";
  $("openers").replaceChildren(...mute || answers() !== model.chat ? [] : OPENERS[model.chat ? "chat" : "text"].map(text => act(text, () => say(text))));
  $("prompt").placeholder = model.chat ? "Ask something…" : answers() ? "A text…" : "Begin a text…";
  $("prompt").disabled = $("send").disabled = mute;
  inputs.get("system").parentElement.hidden = !model.chat;
});
