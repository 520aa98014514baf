/** How images are seen and answers are chosen: the form beside the chat. */

import { byId } from "./elements.js";

export class Settings {
  #form = byId("settings");
  #adjustable = false; // until the server says so
  #edge = null; // the server's own, which is in force until the slider is moved

  /** @param changed called when a setting is another. */
  constructor(changed) {
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", ({ target }) => {
      if (target.name === "max_image_size") this.#edge = null;
      this.#tell();
      changed();
    });
  }

  /** Takes over what the served model can do. */
  fit({ adjustable, splits, longest_image, longest_edge, positions }) {
    const { do_image_splitting, max_image_size, max_tokens } = this.#form.elements;
    this.#adjustable = adjustable;
    this.#edge = longest_edge;
    byId("seeing").hidden = !adjustable;
    do_image_splitting.checked = splits;
    const step = Math.max(1, Math.floor(longest_image / 70));
    Object.assign(max_image_size, { min: Math.max(1, longest_image - 60 * step), max: longest_image, step });
    max_image_size.value = longest_edge;
    max_tokens.max = positions;
    this.#tell();
  }

  get split() {
    return this.#adjustable && this.#form.elements.do_image_splitting.checked;
  }

  /** Options of a request about what the model sees. A size is one only if it was chosen: the slider's steps miss the server's. */
  get seeing() {
    if (!this.#adjustable) return {};
    return { do_image_splitting: this.split, ...(this.#edge === null && { max_image_size: this.#number("max_image_size") }) };
  }

  /** All options of a request; fields left empty are left out. */
  get options() {
    const names = ["temperature", "top_p", "max_tokens", "repetition_penalty", "seed"];
    const given = names.map((name) => [name, this.#number(name)]).filter(([, value]) => value !== undefined);
    return { ...this.seeing, ...Object.fromEntries(given) };
  }

  #number(name) {
    const value = this.#form.elements[name].value;
    return value === "" ? undefined : Number(value);
  }

  #tell() {
    for (const output of this.#form.querySelectorAll("output")) {
      const { name, value } = this.#form.elements[output.htmlFor.value];
      output.value =
        name === "max_image_size" ? `${this.#edge ?? value} px` : name === "temperature" && value === "0" ? "0, likeliest" : value;
    }
  }
}
