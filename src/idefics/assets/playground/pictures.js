/** Images on their way into a message: dropped, pasted or chosen. */

import { byId, element } from "./elements.js";

/** An image that a message holds, and how the page shows it. */
export class Picture {
  /** @param url a data URL, as requests carry it; @param image an element that shows it already. */
  constructor(name, url, image) {
    Object.assign(this, { name, url, width: image.naturalWidth, height: image.naturalHeight });
    this.caption = element("figcaption", {}, pixels(this.width, this.height));
    this.figure = element("figure", {}, element("span", { className: "frame" }, image), this.caption);
  }

  /** Says what the model sees of it. */
  plan({ tokens, seen }, split) {
    const [width, height] = seen.at(-1);
    const how = seen.length > 1 ? `in ${seen.length} parts of` : "as";
    this.caption.replaceChildren(
      element("strong", {}, `${tokens} tokens`),
      element("br"),
      `${pixels(this.width, this.height)}, seen ${how} ${pixels(width, height)}`,
    );
    this.figure.classList.toggle("split", split);
  }

  /** @throws {Error} the file is no image that the browser can show. */
  static async read(file) {
    const name = file.name || "pasted image";
    const image = element("img", { src: URL.createObjectURL(file), alt: name, title: name });
    try {
      await image.decode();
    } catch {
      URL.revokeObjectURL(image.src);
      throw new Error(`${name} is no image that this browser can read.`);
    }
    return new Picture(name, await dataUrl(file), image);
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
    if (!event.clipboardData?.files.length) return;
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

/** A size that no line break parts. */
function pixels(width, height) {
  return `${width}\u00a0×\u00a0${height}`;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
