/** The message that is being written: its text and its images. */

import { chat } from "./asking.js";
import { button, byId, element } from "./elements.js";
import { Picture, watchFiles } from "./pictures.js";

/** A message to write on. `reading` ends when the images on their way are in `pictures`, and `problem` tells of the others. */
export function draftOf({ text = "", pictures = [] } = {}) {
  return { text, pictures: [...pictures], reading: null, problem: "" };
}

export class Composer {
  #draft = draftOf();
  #way = chat;
  #text = byId("text");
  #list = byId("pictures");
  #changed;

  /** @param changed called when the draft is another; @param send called when it is to be sent. */
  constructor({ changed, send }) {
    this.#changed = changed;
    watchFiles((files) => this.#add(files));
    this.#text.addEventListener("input", changed);
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
  }

  /** Goes on with messages for another way of asking. */
  fit(way) {
    this.#way = way;
  }

  /** The turn that the message would be. */
  get turn() {
    return { role: "user", text: this.#way.typed(this.#text.value), pictures: [...this.#draft.pictures] };
  }

  get empty() {
    const { text, pictures } = this.turn;
    return !text && !pictures.length && !this.reading;
  }

  get reading() {
    return this.#draft.reading !== null;
  }

  /** Waits for the images on their way; whether all came, and the message is still the same. */
  async ready() {
    const draft = this.#draft;
    while (draft.reading) await draft.reading;
    return draft === this.#draft && !draft.problem;
  }

  /** Goes on with another draft; the one until now comes back. */
  exchange(draft) {
    const before = Object.assign(this.#draft, { text: this.#text.value });
    this.#draft = draft;
    this.#text.value = draft.text;
    this.complain(draft.problem);
    this.#show();
    return before;
  }

  focus() {
    this.#text.focus();
  }

  /** Says what is wrong, where it was done. */
  complain(problem) {
    byId("problem").textContent = problem;
  }

  /** Images go where they were dropped: into this draft, even if another is shown when they are read. */
  #add(files) {
    const draft = this.#draft;
    const before = draft.reading;
    if (!before) draft.problem = "";
    const read = Promise.allSettled(files.map(Picture.read));
    const reading = (async () => {
      await before; // so that images stand in the order in which they came
      for (const { value, reason } of await read) {
        if (value) draft.pictures.push(value);
        else draft.problem = `${draft.problem} ${reason.message}`.trim();
      }
      if (draft.reading === reading) draft.reading = null;
      if (draft !== this.#draft) return;
      this.complain(draft.problem);
      this.#show();
    })();
    draft.reading = reading;
    this.complain(draft.problem);
    this.focus();
  }

  #remove(index) {
    this.#draft.pictures.splice(index, 1);
    this.complain("");
    this.#show();
    (this.#list.querySelectorAll("button")[Math.min(index, this.#draft.pictures.length - 1)] ?? this.#text).focus();
  }

  #show() {
    const item = (picture, index) =>
      element("li", {}, picture.figure(), button("×", () => this.#remove(index), { ariaLabel: `Remove ${picture.name}` }));
    this.#list.replaceChildren(...this.#draft.pictures.map(item));
    this.#changed();
  }
}
