/** Images on their way into a message: dropped, pasted or chosen. */

import { byId, element } from "./elements.js";

const [WIDTH, HEIGHT] = [408, 312]; // of what is shown at most: three times the frame in page.css, for sharp screens

/** An image that messages hold, and how the page shows it in each place. */
export class Picture {
  #drawn;
  #figures = [];
  #planned = null;

  /** @param url a data URL, as requests carry it; @param image a decoded one: what is shown is drawn from it once. */
  constructor(name, url, image) {
    Object.assign(this, { name, url, width: image.naturalWidth, height: image.naturalHeight });
    const scale = Math.min(1, WIDTH / this.width, HEIGHT / this.height);
    this.#drawn = canvas(image, Math.ceil(this.width * scale) || 1, Math.ceil(this.height * scale) || 1);
  }

  /** A new figure of it: the same image can stand in a turn and in the message that edits it. */
  figure() {
    const image = canvas(this.#drawn, this.#drawn.width, this.#drawn.height);
    Object.assign(image, { role: "img", ariaLabel: this.name, title: this.name });
    const figure = element("figure", {}, element("span", { className: "frame" }, image), element("figcaption"));
    this.#figures.push(figure);
    this.#caption(figure);
    return figure;
  }

  /** Says what the model sees of it. */
  plan(planned, split) {
    this.#planned = { ...planned, split };
    this.#figures = this.#figures.filter((figure) => figure.isConnected);
    this.#figures.forEach((figure) => this.#caption(figure));
  }

  #caption(figure) {
    const caption = figure.querySelector("figcaption");
    const own = pixels(this.width, this.height);
    if (this.#planned === null) {
      caption.textContent = own;
      return;
    }
    const { tokens, seen, split } = this.#planned;
    const how = seen.length > 1 ? `in ${seen.length} parts of` : "as";
    const told = `${own}, seen ${how} ${pixels(...seen.at(-1))}`;
    caption.replaceChildren(element("strong", {}, `${tokens} tokens`), element("br"), told);
    figure.classList.toggle("split", split);
  }

  /** @throws {Error} the file is no image that the browser can show. */
  static async read(file) {
    const name = file.name || "pasted image";
    const image = element("img", { src: URL.createObjectURL(file) });
    try {
      await image.decode();
      return new Picture(name, await dataUrl(file), image);
    } catch {
      throw new Error(`${name} is no image that this browser can read.`);
    } finally {
      URL.revokeObjectURL(image.src);
    }
  }

  /** @throws {Error} it does not come. */
  static async fetched(address) {
    const name = address.split("/").at(-1);
    let response;
    try {
      response = await fetch(address);
    } catch {
      throw new Error(`${name} does not come; is the server still running?`);
    }
    if (!response.ok) throw new Error(`${name} does not come: the server answered HTTP ${response.status}.`);
    return Picture.read(new File([await response.blob()], name, { type: "image/png" }));
  }
}

/** Calls `take` with the files that come in, by whichever way. */
export function watchFiles(take) {
  const files = byId("files");
  byId("choose").addEventListener("click", () => files.click());
  files.addEventListener("change", () => {
    take([...files.files]);
    files.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length || isText(event)) return;
    event.preventDefault();
    take([...event.clipboardData.files]);
  });
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!holdsFiles(event)) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
}

/** Whether what is pasted is text that comes with a picture of itself, as cells of a spreadsheet do; files come with their names. */
function isText({ target, clipboardData }) {
  const text = clipboardData.getData("text/plain").trim();
  if (!text || !target.closest?.("textarea, input")) return false;
  const names = new Set([...clipboardData.files].flatMap(({ name }) => [name, encodeURIComponent(name)]));
  return !text.split(/\s*[\r\n]+\s*/).every((line) => names.has(line.split(/[/\\]/).at(-1)));
}

function canvas(image, width, height) {
  const made = element("canvas", { width, height });
  made.getContext("2d").drawImage(image, 0, 0, width, height);
  return made;
}

/** A size that no line break parts. */
function pixels(width, height) {
  return `${width}\u00a0×\u00a0${height}`;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
