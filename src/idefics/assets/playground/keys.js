/** What keys do on the page. */

import { byId } from "./elements.js";

const glass = matchMedia("(hover: none) and (pointer: coarse)"); // a keyboard on glass has no Shift to break a line with

/**
 * @param send called by Ctrl or Cmd with Enter, and by Enter alone in the message where `entersSend()`; Shift breaks the line.
 * @param escape called by Esc.
 */
export function watchKeys({ send, escape, entersSend }) {
  document.addEventListener("keydown", (event) => {
    // Keys belong to an input method while it composes (229 is how Safari says so), and to a dialog while it is open.
    if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
    const alone = event.target === byId("text") && !event.shiftKey && !event.altKey && entersSend() && !glass.matches;
    if (event.key === "Escape") {
      escape();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey || alone)) {
      event.preventDefault();
      send();
    }
  });
}
