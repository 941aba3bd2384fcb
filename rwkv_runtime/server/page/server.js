// What the page asks its server for. The key lives in this tab's session storage alone.

const KEY = "api-key";

/** The server refused: its status, and its own words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Server {
  #model = "";

  set key(value) {
    sessionStorage.setItem(KEY, value);
  }

  async model() {
    const models = await this.#json("GET", "v1/models");
    this.#model = models.data[0].id;
    return this.#model;
  }

  put(text, name) {
    return this.#json("PUT", "v1/documents", { text, name });
  }

  async documents() {
    return (await this.#json("GET", "v1/documents")).data;
  }

  remove(id) {
    return this.#json("DELETE", `v1/documents/${encodeURIComponent(id)}`);
  }

  store() {
    return this.#json("GET", "v1/store");
  }

  /** Ask about a document; `onText` is given the answer as it comes. Returns the usage. */
  async ask(id, question, signal, onText) {
    const answer = await this.#fetch("POST", "v1/chat/completions", {
      model: this.#model,
      documents: [id],
      messages: [{ role: "user", content: question }],
      max_tokens: 256,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    }, signal);
    let usage = null;
    for await (const event of events(answer.body)) {
      if (event === "[DONE]") break;
      const chunk = JSON.parse(event);
      if (chunk.error) throw new Refusal(500, chunk.error.message);
      const text = chunk.choices?.[0]?.delta?.content;
      if (text) onText(text);
      usage = chunk.usage ?? usage;
    }
    if (usage === null) throw new Refusal(502, "The answer broke off. Ask again.");
    return usage;
  }

  async #json(method, path, body) {
    const answer = await this.#fetch(method, path, body);
    return answer.status === 204 ? null : answer.json();
  }

  async #fetch(method, path, body, signal) {
    const key = sessionStorage.getItem(KEY);
    const headers = {
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(key ? { Authorization: `Bearer ${key}` } : {}),
    };
    let answer;
    try {
      answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal(502, "The server does not answer.");
    }
    if (!answer.ok) throw new Refusal(answer.status, await reason(answer));
    return answer;
  }
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server refused with ${answer.status}.`;
  }
}

/** The data of each server-sent event of a body. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value.replaceAll("\r", "");
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.length) yield data.join("\n");
    }
  }
}
