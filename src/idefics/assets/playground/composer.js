/** The message that is being written: its text and its images. */

import { button, byId, element } from "./elements.js";
import { Picture, watchFiles } from "./pictures.js";

export class Composer {
  pictures = [];
  #text = byId("text");
  #list = byId("pictures");
  #changed;

  /** @param changed called when the draft is another; @param send called when it is to be sent. */
  constructor({ changed, send }) {
    this.#changed = changed;
    watchFiles((files) => this.add(files));
    this.#text.addEventListener("input", changed);
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
  }

  get draft() {
    return { role: "user", text: this.#text.value.trim(), pictures: [...this.pictures] };
  }

  get empty() {
    return !this.#text.value.trim() && !this.pictures.length;
  }

  write({ text, pictures }) {
    this.#text.value = text;
    this.pictures = [...pictures];
    this.#show();
  }

  clear() {
    this.write({ text: "", pictures: [] });
    this.complain("");
  }

  focus() {
    this.#text.focus();
  }

  /** Says what is wrong, where it was done. */
  complain(problem) {
    byId("problem").textContent = problem;
  }

  async add(files) {
    this.complain("");
    const read = await Promise.allSettled(files.map(Picture.read));
    const wrong = read.filter((result) => result.status === "rejected").map((result) => result.reason.message);
    this.pictures.push(...read.filter((result) => result.status === "fulfilled").map((result) => result.value));
    this.complain(wrong.join(" "));
    this.#show();
    this.focus();
  }

  #remove(index) {
    this.pictures.splice(index, 1);
    this.#show();
    (this.#list.querySelectorAll("button")[Math.min(index, this.pictures.length - 1)] ?? this.#text).focus();
  }

  #show() {
    const item = (picture, index) =>
      element("li", {}, picture.figure, button("×", () => this.#remove(index), { ariaLabel: `Remove ${picture.name}` }));
    this.#list.replaceChildren(...this.pictures.map(item));
    this.#changed();
  }
}
