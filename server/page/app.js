// What the page does: asks POST /v1/rewards of its own server, and shows one colour per token.

const $ = (id) => document.getElementById(id);
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const EXAMPLES = [
  ["A lost carry", "Mia has 23 apples. Tom gives Mia 18 more. Mia sells 12 apples. How many apples does Mia have now?",
    ["23 + 18 = 41\n41 - 12 = 29\n#### 29", "23 + 18 = 31\n31 - 12 = 19\n#### 19"]],
  ["The wrong operation", "Omar has 48 stamps. Omar gives away 15 stamps. Lea gives Omar 22 more. How many stamps does Omar have now?",
    ["48 - 15 = 33\n33 + 22 = 55\n#### 55", "48 + 15 = 63\n63 + 22 = 85\n#### 85"]],
  ["A number copied wrong", "A shop has 64 books. It sells 27 books. It buys 35 books. How many books does the shop have now?",
    ["64 - 27 = 37\n37 + 35 = 72\n#### 72", "64 - 27 = 37\n37 + 53 = 90\n#### 90"]],
];

/** What the server said of itself, the request that was sent last, and its answer. */
let info = null, request = null, answer = null;

const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const number = (x) => (Math.abs(x) >= 1000 ? x.toFixed(1) : x.toFixed(3)).replace("-", "\u2212");
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;

// --- asking ---

async function ask(path, body) {
  const headers = body ? { "content-type": "application/json" } : {};
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw { message: "The server cannot be reached." };
  }
  const json = await response.json().catch(() => null);
  if (!response.ok) {
    const wait = response.headers.get("retry-after");
    const error = json?.error ?? { message: `status ${response.status}` };
    throw { ...error, message: error.message + (wait ? ` (try again in ${wait} s)` : "") };
  }
  return json;
}

async function meet() {
  try {
    info = await ask("/info");
  } catch (error) {
    $("about").textContent = error.code === "invalid_api_key" ? "This server asks for an API key." : error.message;
    return;
  }
  if ($("model").options.length === 0) {
    $("model").replaceChildren(...info.models.map((m) => new Option(m.model)));
  }
  chooseModel();
}

function facts() {
  return info?.models.find((m) => m.model === $("model").value) ?? info?.models[0];
}

function chooseModel() {
  const model = facts();
  if (!model) return;
  const size = (model.parameters / 1e6).toFixed(1);
  $("about").textContent = `${model.model}: ${model.head}, ${model.architecture}, ${size} M parameters`;
  const vocabulary = ["advantage", "logit", "centered_logit"];
  const rewards = { q_vocab: vocabulary, dpo: ["dpo", ...vocabulary], q_scalar: ["logit", "outcome"],
    outcome: ["outcome", "logit"], step: ["step", "outcome", "logit"] }[model.head] ?? [model.reward];
  $("reward").replaceChildren(...rewards.map((r) => new Option(r)));
  $("reward").value = model.reward;
}

function written() {
  const responses = [...document.querySelectorAll("#answers textarea")].map((t) => t.value);
  const text = $("prompt").value;
  const prompt = chosen("kind") === "prompt" ? { prompt: text } : { messages: [{ role: "user", content: text }] };
  const include = ["tokens", "offsets", "logit"];
  if (["q_vocab", "dpo"].includes(facts()?.head)) include.push("logsumexp", "max", "entropy");
  const body = { inputs: [{ ...prompt, responses }], include };
  if ($("reward").value) body.reward = $("reward").value;
  if (info?.models.length > 1) body.model = $("model").value;
  return body;
}

async function score(event) {
  event?.preventDefault();
  if ($("score").disabled) return; // the keys do not ask the button
  $("problem").textContent = "";
  for (const area of document.querySelectorAll("textarea")) area.removeAttribute("aria-invalid");
  $("score").disabled = true;
  try {
    if (!info) await meet();
    const asked = written();
    [answer, request] = [await ask("/v1/rewards", asked), asked];
    show();
  } catch (error) {
    $("problem").textContent = complaint(error);
    if (!error.message) throw error;
  } finally {
    $("score").disabled = false;
  }
}

/** The API's message, with the page's name for the field at fault. */
function complaint({ message, param }) {
  const at = /responses\[(\d+)\]/.exec(param ?? "");
  const areas = document.querySelectorAll("#answers textarea");
  if (at) areas[at[1]]?.setAttribute("aria-invalid", "true");
  else if (/prompt|messages/.test(param ?? "")) $("prompt").setAttribute("aria-invalid", "true");
  const where = at ? `Answer ${LETTERS[at[1]] ?? at[1]}: ` : param ? `${param}: ` : "";
  return where + message;
}

// --- showing ---

/** Of all tokens of all answers: what is neutral, and how far away the strongest colour is. */
function measure() {
  const { mean, std } = answer.stats;
  if (chosen("scale") === "standard") return { middle: mean, reach: 3 * (std > 1e-8 ? std : 1), unit: "σ" };
  const all = answer.data.flatMap((d) => d.rewards);
  return { middle: 0, reach: Math.max(...all.map(Math.abs), 1e-6), unit: "" };
}

const SHADES = {
  light: { low: [179, 88, 6], none: [246, 247, 249], high: [33, 102, 172] },
  dark: { low: [253, 150, 60], none: [34, 39, 47], high: [95, 165, 240] },
};
const theme = () => document.documentElement.dataset.theme;

/** Orange below, blue above: told apart with every common colour vision, and by lightness. */
function colour(x) {
  const { low, none, high } = SHADES[theme()];
  const end = x < 0 ? low : high;
  const t = Math.min(Math.abs(x), 1) ** 0.7;
  const mixed = none.map((n, i) => Math.round(n + (end[i] - n) * t));
  const light = mixed.map((c) => ((c / 255 + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  return { back: `rgb(${mixed.join(" ")})`, text: light > 0.18 ? "#14181f" : "#ffffff" };
}

/** The tokens' texts: slices of the response, by bytes; a piece of a character is shown as the vocabulary has it. */
function texts(datum, response) {
  const bytes = new TextEncoder().encode(response);
  const decoder = new TextDecoder("utf-8", { fatal: true });
  return datum.tokens.map((token, i) => {
    const [begin, end] = datum.offsets[i];
    try {
      return decoder.decode(bytes.subarray(begin, end)) || token;
    } catch {
      return token;
    }
  });
}

const sight = (text) => text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "→");

function show() {
  const responses = request.inputs[0].responses;
  const best = Math.max(...answer.data.map((d) => d.score));
  $("cards").replaceChildren(...answer.data.map((datum, a) => card(datum, a, responses[a], best)));
  $("tables").replaceChildren(...answer.data.map((datum, a) => table(datum, a, responses[a])));
  $("result").hidden = false;
  paint();
  curve();
}

function card(datum, a, response, best) {
  const several = answer.data.length > 1;
  const isBest = several && datum.score === best;
  const lowest = datum.rewards.indexOf(Math.min(...datum.rewards));
  const heading = element("h2", {}, `Answer ${LETTERS[a] ?? a}${isBest ? " — highest score" : ""}`);
  const pairs = [["score", number(datum.score)], ["sum", number(datum.sum)], ["tokens", String(datum.length)], ["lowest", number(datum.rewards[lowest])]];
  const list = element("dl", {}, ...pairs.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  const tokens = element("div", { class: "tokens", role: "group", "aria-label": `Tokens of answer ${LETTERS[a] ?? a}` });
  texts(datum, response).forEach((text, i) => {
    const label = `${sight(text)}, reward ${number(datum.rewards[i])}${i === lowest ? ", the lowest" : ""}`;
    const token = element("button", { type: "button", class: i === lowest ? "token lowest" : "token", "aria-label": label, tabindex: i ? -1 : 0 });
    token.dataset.a = a;
    token.dataset.i = i;
    for (const part of text.split(/(\s)/).filter(Boolean)) {
      token.append(/\s/.test(part) ? element("span", { class: "unseen" }, sight(part)) : part);
    }
    tokens.append(token);
    if (text.includes("\n")) tokens.append(element("br"));
  });
  return element("article", { class: isBest ? "card best" : "card" }, heading, list, tokens);
}

function paint() {
  const { middle, reach, unit } = measure();
  for (const token of document.querySelectorAll(".token")) {
    const { back, text } = colour((answer.data[token.dataset.a].rewards[token.dataset.i] - middle) / reach);
    token.style.background = back;
    token.style.color = text;
  }
  const steps = Array.from({ length: 41 }, (_, i) => i / 20 - 1);
  const label = (x) => (unit ? `${number(middle + x * reach)} (${x < 0 ? "\u2212" : x > 0 ? "+" : "mean "}${x ? "3 σ" : ""})` : number(x * reach)).replace("(mean )", "(mean)");
  const stops = steps.map((x, i) => `<rect x="${i * 8}" y="0" width="8.5" height="14" fill="${colour(x).back}"/>`).join("");
  const ticks = [[-1, "start", 0], [0, "middle", 164], [1, "end", 328]]
    .map(([x, anchor, at]) => `<text x="${at}" y="28" text-anchor="${anchor}">${label(x)}</text>`).join("");
  $("legend").innerHTML = `<svg width="328" height="32" role="img" aria-label="Orange: low rewards, down to ${label(-1)}. Blue: high rewards, up to ${label(1)}.">${stops}${ticks}</svg>`;
}

function detail(token) {
  const { a, i } = token.dataset;
  const datum = answer.data[a];
  const text = texts(datum, request.inputs[0].responses[a])[i];
  const { mean, std } = answer.stats;
  const parts = [["reward", number(datum.rewards[i])], ["standardised", number((datum.rewards[i] - mean) / (std > 1e-8 ? std : 1))]];
  for (const name of ["logit", "logsumexp", "max", "entropy"]) {
    if (datum[name]) parts.push([name, number(datum[name][i])]);
  }
  const place = `${LETTERS[a] ?? a}, token ${Number(i) + 1} of ${datum.length}: `;
  $("detail").replaceChildren(place, element("b", {}, sight(text)), ...parts.flatMap(([name, value]) => [" · ", element("span", { class: "faint" }, name), ` ${value}`]));
}

function table(datum, a, response) {
  const names = ["rewards", "logit", "logsumexp", "max", "entropy"].filter((name) => datum[name]);
  const head = element("tr", {}, ...["token", ...names].map((name) => element("th", { scope: "col" }, name)));
  const rows = texts(datum, response).map((text, i) =>
    element("tr", {}, element("td", {}, sight(text)), ...names.map((name) => element("td", {}, number(datum[name][i])))));
  return element("table", {}, element("caption", {}, `Answer ${LETTERS[a] ?? a}`), element("thead", {}, head), element("tbody", {}, ...rows));
}

/** Cumulative reward over tokens, one line an answer. */
function curve() {
  const sums = answer.data.map((d) => d.rewards.reduce((all, r) => [...all, all.at(-1) + r], [0]));
  const flat = sums.flat();
  const [low, high, last] = [Math.min(...flat), Math.max(...flat), Math.max(...sums.map((s) => s.length - 1))];
  const [width, height, left, bottom] = [800, 240, 70, 30];
  const x = (t) => left + (t / last) * (width - left - 50);
  const y = (v) => 12 + ((high - v) / (high - low || 1)) * (height - bottom - 24);
  const grid = [high, (high + low) / 2, low].map((v) =>
    `<line x1="${left}" x2="${width - 50}" y1="${y(v)}" y2="${y(v)}"/><text x="${left - 8}" y="${y(v) + 4}" text-anchor="end">${number(v)}</text>`).join("");
  const lines = sums.map((s, a) => {
    const points = s.map((v, t) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
    return `<polyline class="line-${a % 4}" points="${points}"/>` +
      `<text x="${x(s.length - 1) + 6}" y="${y(s.at(-1)) + 4}">${LETTERS[a] ?? a}</text>`;
  }).join("");
  const ends = sums.map((s, a) => `answer ${LETTERS[a] ?? a} ends at ${number(s.at(-1))}`).join(", ");
  $("curve").innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Cumulative reward: ${ends}">${grid}${lines}` +
    `<text x="${left}" y="${height - 6}">token 1</text><text x="${width - 50}" y="${height - 6}" text-anchor="end">${last}</text></svg>` +
    `<figcaption>Cumulative reward: ${ends}.</figcaption>`;
}

// --- the form ---

function addAnswer(text = "") {
  const row = element("div", { class: "answer" });
  const area = element("textarea", { rows: 5, spellcheck: "false" });
  area.value = text;
  const remove = element("button", { type: "button" }, "Remove");
  remove.addEventListener("click", () => { row.remove(); name(); });
  row.append(element("div", {}, element("label"), remove), area);
  $("answers").append(row);
  name();
  return area;
}

/** Letters in order; the last answer stays. */
function name() {
  const rows = [...document.querySelectorAll(".answer")];
  rows.forEach((row, a) => {
    row.querySelector("label").textContent = `Answer ${LETTERS[a] ?? a}`;
    row.querySelector("textarea").id = `answer-${a}`;
    row.querySelector("label").htmlFor = `answer-${a}`;
    row.querySelector("button").setAttribute("aria-label", `Remove answer ${LETTERS[a] ?? a}`);
    row.querySelector("button").hidden = rows.length === 1;
  });
}

function load(example) {
  const [, prompt, answers] = EXAMPLES[example];
  $("prompt").value = prompt;
  document.querySelector("input[name=kind][value=messages]").checked = true;
  $("answers").replaceChildren();
  answers.forEach((text) => addAnswer(text));
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = `${what} copied`;
  } catch {
    // Browsers keep the clipboard from pages that came over plain HTTP.
    const area = element("textarea", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    $("copied").textContent = document.execCommand("copy") ? `${what} copied` : "The browser does not let the page copy.";
    area.remove();
  }
}

function curl() {
  const quote = (text) => `'${text.replace(/'/g, "'\\''")}'`;
  const key = $("key").value ? ` -H "authorization: Bearer $QRM_KEY"` : "";
  return `curl -s ${location.origin}/v1/rewards -H 'content-type: application/json'${key} -d ${quote(JSON.stringify(request))}`;
}

function dress(to) {
  document.documentElement.dataset.theme = to;
  $("theme").textContent = to === "dark" ? "Light" : "Dark";
  if (answer) paint();
}

$("form").addEventListener("submit", score);
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) score(event);
});
$("add").addEventListener("click", () => addAnswer().focus());
$("example").append(...EXAMPLES.map(([name], i) => new Option(name, i)));
$("example").addEventListener("change", (event) => load(event.target.value));
$("model").addEventListener("change", chooseModel);
$("key").addEventListener("change", meet);
$("theme").addEventListener("click", () => dress(theme() === "dark" ? "light" : "dark"));
$("copy-json").addEventListener("click", () => copy(JSON.stringify(answer, null, 1), "JSON"));
$("copy-curl").addEventListener("click", () => copy(curl(), "curl"));
for (const radio of document.querySelectorAll("input[name=scale]")) radio.addEventListener("change", paint);
for (const kind of ["focusin", "mouseover"]) {
  $("cards").addEventListener(kind, (event) => {
    const token = event.target.closest(".token");
    if (token) detail(token);
  });
}
$("cards").addEventListener("keydown", (event) => {
  const token = event.target.closest(".token");
  const all = token && [...token.parentElement.querySelectorAll(".token")];
  const to = { ArrowRight: +token?.dataset.i + 1, ArrowLeft: +token?.dataset.i - 1, Home: 0, End: all?.length - 1 }[event.key];
  if (!all || to === undefined || !all[to]) return;
  event.preventDefault();
  token.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
});

dress(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
load(0);
meet();
