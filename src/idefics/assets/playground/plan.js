/** What the next request will take, as the server reckons it. */

import { byId, element, size } from "./elements.js";
import { messagesOf, picturesOf } from "./conversation.js";

const PAUSE = 150; // milliseconds without a change before the server is asked

export class PlanPanel {
  #panel = byId("plan");
  #server;
  #waiting = null;
  #asked = null;

  constructor(server) {
    this.#server = server;
  }

  /** Plans for turns soon; only the newest wish is fulfilled. */
  update(turns, settings) {
    clearTimeout(this.#waiting);
    this.#asked?.abort();
    this.#waiting = setTimeout(() => this.#ask(turns, settings), PAUSE);
  }

  async #ask(turns, settings) {
    this.#asked = new AbortController();
    // Each has a name, as the plan may count more images: those that a text holds as markdown.
    const messages = messagesOf(turns, ({ width, height }, number) => `${width}x${height} (${number})`);
    const { max_tokens } = settings.options;
    try {
      const plan = await this.#server.plan({ messages, max_tokens, ...settings.seeing }, this.#asked.signal);
      const named = new Map(plan.images.map((image) => [image.name, image]));
      picturesOf(turns).forEach((picture, number) => picture.plan(named.get(String(number)), settings.split));
      this.#show(plan);
    } catch (error) {
      if (error.name !== "AbortError") this.#panel.replaceChildren(element("p", { className: "problem" }, error.message));
    }
  }

  #show({ tokens, fits, bytes, dtype }) {
    const used = element("meter", { max: tokens.positions, value: tokens.prompt + tokens.answer, high: tokens.positions });
    used.ariaLabel = "Positions taken";
    this.#panel.replaceChildren(
      table("Tokens", [
        ["Images", tokens.images],
        ["Text", tokens.text],
        ["Prompt", tokens.prompt],
        ["Answer, at most", tokens.answer],
        ["The model's positions", tokens.positions],
      ]),
      used,
      ...(fits ? [] : [element("p", { className: "problem" }, "Prompt and answer do not fit; ask for fewer new tokens.")]),
      table(`Memory in ${dtype}`, [
        ["Weights", size(bytes.weights)],
        ["Keys and values", size(bytes.cache)],
        ["Seeing the images", size(bytes.vision)],
        ["Reading the prompt", size(bytes.prompt)],
        ["At the peak", size(bytes.total)],
      ]),
    );
  }
}

function table(caption, rows) {
  const row = ([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value.toLocaleString("en")));
  return element("table", {}, element("caption", {}, caption), ...rows.map(row));
}
