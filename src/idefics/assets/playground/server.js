/** The server that this page came from. */

/** What went wrong, in words for people. */
export class ServerError extends Error {}

/** @param askForKey called with whether a key was refused; resolves to the key to try next. */
export class Server {
  #key = sessionStorage.getItem("key");
  #askForKey;
  #asking = null;

  constructor(askForKey) {
    this.#askForKey = askForKey;
  }

  /** Address of a path, also behind a proxy that serves this page below a prefix. */
  static address(path) {
    return new URL(path, document.baseURI).href;
  }

  async facts() {
    return (await this.#fetch("playground/facts")).json();
  }

  async plan(chat, signal) {
    return (await this.#post("playground/plan", chat, signal)).json();
  }

  /** Yields the events of a streamed chat completion. */
  async *chat(request, signal) {
    const response = await this.#post("v1/chat/completions", request, signal);
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(told(event));
      yield event;
    }
    throw new ServerError("The server went away in mid-answer.");
  }

  #post(path, body, signal) {
    return this.#fetch(path, { method: "POST", body: JSON.stringify(body), signal });
  }

  async #fetch(path, options = {}) {
    const key = this.#key;
    const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await reached(fetch(Server.address(path), { ...options, headers }));
    if (response.ok) return response;
    if (response.status === 401) {
      if (key === this.#key) await this.#newKey(key);
      return this.#fetch(path, options);
    }
    throw new ServerError(told(await response.json().catch(() => ({ error: `HTTP ${response.status}` }))));
  }

  /** Asks once, however many requests wait for a key. */
  async #newKey(refused) {
    this.#asking ??= this.#askForKey(refused !== null);
    this.#key = await this.#asking;
    this.#asking = null;
    sessionStorage.setItem("key", this.#key);
  }
}

/** Both APIs' forms of an error. */
function told({ error }) {
  return typeof error === "string" ? error : error.message;
}

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached; is it still running?");
  }
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reached(reader.read());
      if (done) return;
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) yield event.replace(/^data: ?/, "");
    }
  } finally {
    reader.cancel().catch(() => {}); // gone already, or stopped
  }
}
