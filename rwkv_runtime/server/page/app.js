// The page: read a document, ask about it, watch the store. No library, no build.

import { Server, Refusal } from "./server.js";
import { bytes, count, seconds } from "./words.js";

const POLL_MS = 2000;
const TRACE_POINTS = 150; // five minutes

const $ = (id) => document.getElementById(id);
const UNASKED = $("about").textContent;
const server = new Server();
let current = null; // the document that questions are about
let asking = null; // aborts the answer that is being written

function show(element, text, problem = false) {
  element.textContent = text;
  element.classList.toggle("problem", problem);
}

/** Run `work`; a refusal is shown in `place`, or asks for a key. */
async function attempt(place, work) {
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error instanceof Refusal && error.status === 401) {
      $("key-form").hidden = false;
      $("key").focus();
    }
    show(place, error.message, true);
  }
}

// 1. A document.

function bar(cached, computed) {
  const all = Math.max(1, cached + computed);
  const element = document.createElement("div");
  element.className = "bar";
  element.setAttribute("role", "img");
  paint(element, cached, computed, all);
  return element;
}

function paint(element, cached, computed, all) {
  const parts = [["cached", cached], ["computed", computed]].map(([name, tokens]) => {
    const part = document.createElement("i");
    part.className = name;
    part.style.width = `${(100 * tokens) / all}%`;
    return part;
  });
  element.classList.remove("waiting");
  element.replaceChildren(...parts);
  element.setAttribute("aria-label", `${count(cached)} tokens from the store, ${count(computed)} computed`);
}

/** Questions are about this document from now on; none are asked about `null`. */
function use(known, questions = []) {
  current = known;
  $("question").disabled = $("ask").disabled = known === null;
  $("about").textContent = known === null
    ? UNASKED
    : `About ${known.name || known.id}: ${count(known.tokens)} tokens that are not read again.`;
  suggest(questions);
}

async function read(text, questions) {
  const place = $("reading");
  const waiting = document.createElement("div");
  waiting.className = "bar waiting";
  place.classList.remove("problem");
  place.replaceChildren(waiting);
  $("read").disabled = true;
  try {
    await attempt(place, async () => {
      const began = performance.now();
      const known = await server.put(text, title(text));
      const took = (performance.now() - began) / 1000;
      const line = document.createElement("p");
      line.className = "hint";
      line.textContent = known.cached >= known.tokens - 1
        ? `${count(known.tokens)} tokens, all from the store, in ${seconds(took)}.`
        : `${count(known.tokens)} tokens: ${count(known.tokens - known.cached)} read in ${seconds(took)}, ${count(known.cached)} from the store.`;
      place.replaceChildren(bar(known.cached, known.tokens - known.cached), line);
      use({ ...known, name: known.name || title(text) }, questions);
      $("question").focus();
      await list();
    });
  } finally {
    $("read").disabled = false;
  }
}

function title(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

function suggest(questions) {
  $("suggested").replaceChildren(...questions.map((question) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet small";
    button.textContent = question;
    button.addEventListener("click", () => ask(question));
    return button;
  }));
}

async function list() {
  const known = await server.documents();
  $("known").hidden = known.length === 0;
  $("documents").replaceChildren(...known.map((one) => {
    const item = document.createElement("li");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = `${one.name || one.id}`;
    const tokens = document.createElement("span");
    tokens.className = "hint";
    tokens.textContent = `${count(one.tokens)} tokens`;
    const take = document.createElement("button");
    take.className = "quiet small";
    take.textContent = "Use";
    take.setAttribute("aria-label", `Use ${name.textContent}`);
    take.addEventListener("click", () => { use(one); $("question").focus(); });
    const drop = document.createElement("button");
    drop.className = "quiet small";
    drop.textContent = "Delete";
    drop.setAttribute("aria-label", `Delete ${name.textContent}`);
    drop.addEventListener("click", () => attempt($("reading"), async () => {
      await server.remove(one.id);
      if (current?.id === one.id) use(null);
      await list();
    }));
    item.append(name, tokens, take, drop);
    return item;
  }));
}

// 2. Questions.

async function ask(question) {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const item = $("answer").content.cloneNode(true).firstElementChild;
  const [answer, cost, meter] = [".answer", ".cost", ".bar"].map((part) => item.querySelector(part));
  item.querySelector(".asked").textContent = question;
  meter.classList.add("waiting");
  $("answers").prepend(item);
  await attempt(cost, async () => {
    const began = performance.now();
    let first = 0;
    const usage = await server.ask(current.id, question, signal, (text) => {
      first ||= performance.now() - began;
      answer.textContent = (answer.textContent + text).trimStart();
    });
    const all = performance.now() - began;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    paint(meter, cached, usage.prompt_tokens - cached, usage.prompt_tokens);
    show(cost, `${count(cached)} tokens from the store, ${count(usage.prompt_tokens - cached)} read; first word after ${seconds((first || all) / 1000)}, all after ${seconds(all / 1000)}`);
  });
  meter.classList.remove("waiting");
}

// The store, live.

const trace = [];

function draw(saved) {
  trace.push(saved);
  if (trace.length > TRACE_POINTS) trace.shift();
  const low = trace[0];
  const span = Math.max(1, Math.max(...trace) - low);
  const points = trace.map((value, place) => {
    const x = trace.length === 1 ? 600 : (600 * place) / (trace.length - 1);
    return `${x.toFixed(1)},${(76 - (70 * (value - low)) / span).toFixed(1)}`;
  });
  const path = (name, d) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "path");
    element.setAttribute("class", name);
    element.setAttribute("d", d);
    return element;
  };
  $("trace").replaceChildren(
    path("area", `M0,80 L${points.join(" L")} L600,80 Z`),
    path("line", `M${points.join(" L")}`),
  );
}

async function watch() {
  try {
    const store = await server.store();
    const words = {
      entries: count(store.entries),
      bytes: bytes(store.bytes),
      hits: count(store.hits),
      tokens_saved: count(store.tokens_saved),
      seconds_saved: seconds(store.seconds_saved),
    };
    for (const [field, text] of Object.entries(words)) {
      $("store").querySelector(`[data-field=${field}]`).textContent = text;
    }
    draw(store.tokens_saved);
    $("store-problem").hidden = true;
    health(true);
  } catch (error) {
    $("store-problem").hidden = false;
    show($("store-problem"), error.message, true);
    health(error instanceof Refusal && error.status !== 502);
  }
}

function health(up) {
  $("health").className = `dot ${up ? "up" : "down"}`;
  $("health").setAttribute("aria-label", up ? "the server answers" : "the server does not answer");
}

async function start() {
  await attempt($("model"), async () => {
    $("model").textContent = await server.model();
    await list();
  });
  await watch();
}

$("document-form").addEventListener("submit", (event) => {
  event.preventDefault();
  read($("text").value, []);
});
$("example").addEventListener("click", async () => {
  const example = await (await fetch("example.json")).json();
  $("text").value = example.text;
  $("text").dispatchEvent(new Event("input"));
  await read(example.text, example.questions);
});
$("text").addEventListener("input", () => {
  $("size").textContent = $("text").value ? bytes(new Blob([$("text").value]).size) : "";
});
$("question-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || !current) return;
  $("question").value = "";
  ask(question);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  server.key = $("key").value;
  $("key-form").hidden = true;
  start();
});

start();
setInterval(() => { if (!document.hidden) watch(); }, POLL_MS);
