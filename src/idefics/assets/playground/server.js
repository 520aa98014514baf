/** The server that this page came from. */

import { tabStore } from "./store.js";

/** What went wrong, in words for people. */
export class ServerError extends Error {}

/** The server asks for a key, and the user gave none. */
export class NoKeyError extends ServerError {}

/** @param askForKey called with whether a key was refused; resolves to the key to try next, or `null`. */
export class Server {
  #key = tabStore.get("key");
  #asksForKeys = this.#key !== null;
  #askForKey;
  #asking = null;

  constructor(askForKey) {
    this.#askForKey = askForKey;
  }

  /** Address of a path, also behind a proxy that serves this page below a prefix. */
  static address(path) {
    return new URL(path, document.baseURI).href;
  }

  /** Whether the server is known to ask for keys. */
  get asksForKeys() {
    return this.#asksForKeys;
  }

  /** Asks for another key; the next request tries it. */
  async changeKey() {
    const given = await this.#askForKey(false);
    if (given !== null) this.#key = given;
    return given !== null;
  }

  async facts() {
    return jsonOf(await this.#fetch("playground/facts"));
  }

  /** Asks for no key, as it is called while somebody writes. */
  async plan(request, signal) {
    return jsonOf(await this.#post("playground/plan", request, signal, { asks: false }));
  }

  /** Yields the events of a streamed completion, of whichever path. */
  async *events(path, request, signal) {
    const response = await this.#post(path, request, signal);
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const event = read(data);
      if (event === null || event.error) throw new ServerError(told(event, "What the server sent is no event."));
      yield event;
    }
    throw new ServerError("The server went away in mid-answer.");
  }

  #post(path, body, signal, how) {
    return this.#fetch(path, { method: "POST", body: JSON.stringify(body), signal }, how);
  }

  async #fetch(path, options = {}, { asks = true } = {}) {
    const key = this.#key;
    const headers = { "Content-Type": "application/json", ...(key !== null && { Authorization: `Bearer ${key}` }) };
    const response = await reached(fetch(Server.address(path), { ...options, headers }));
    if (response.ok) {
      if (key !== null) tabStore.set("key", key); // kept only now: a key that does not work is not met again
      return response;
    }
    if (response.status !== 401) {
      throw new ServerError(told(read(await reached(response.text())), `The server answered HTTP ${response.status}.`));
    }
    this.#asksForKeys = true;
    if (key === this.#key) await this.#newKey(key, asks);
    return this.#fetch(path, options, { asks });
  }

  /** Asks once, however many requests wait for a key. */
  async #newKey(refused, asks) {
    if (asks) {
      this.#asking ??= this.#askForKey(refused !== null);
      this.#key = await this.#asking;
      this.#asking = null;
    }
    if (asks && this.#key !== null) return;
    tabStore.remove("key");
    throw new NoKeyError("No key given: this server answers only those who have an API key.");
  }
}

/** What a JSON text holds; `null` if it is none, such as a proxy's page. */
function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** What an error's body says, in the forms of both APIs and of proxies before them. */
function told(body, otherwise) {
  const said = [body?.error?.message, body?.error, body?.message, body?.detail];
  return said.find((each) => typeof each === "string" && each) ?? otherwise;
}

async function jsonOf(response) {
  const body = read(await reached(response.text()));
  if (body === null) throw new ServerError("What answered is not this page's server.");
  return body;
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
