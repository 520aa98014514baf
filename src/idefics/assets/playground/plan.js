/** What the next request will take, as the server reckons it. */

import { byId, element, size } from "./elements.js";
import { picturesOf } from "./conversation.js";

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
  update(way, turns, settings) {
    clearTimeout(this.#waiting);
    this.#asked?.abort();
    this.#waiting = setTimeout(() => this.#ask(way.planned(turns), picturesOf(turns), settings), PAUSE);
  }

  async #ask({ asked, own }, pictures, settings) {
    this.#asked = new AbortController();
    const { max_tokens } = settings.options;
    try {
      const plan = await this.#server.plan({ ...asked, max_tokens, ...settings.seeing }, this.#asked.signal);
      own(plan.images).forEach((image, number) => pictures[number].plan(image, settings.split));
      this.#show(plan);
    } catch (error) {
      if (error.name !== "AbortError") this.#panel.replaceChildren(element("p", { className: "problem" }, error.message));
    }
  }

  #show({ tokens, fits, bytes, dtype }) {
    const number = (value) => value.toLocaleString("en");
    byId("brief").textContent = `${number(tokens.prompt)} + ${number(tokens.answer)} of ${number(tokens.positions)} tokens`;
    byId("brief").classList.toggle("problem", !fits);
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
