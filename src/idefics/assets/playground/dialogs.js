/** What is asked or handed over apart from the page. */

import { byId } from "./elements.js";

const PRINTABLE = /^[\x20-\x7e]+$/; // what a header can carry

/** Asks for an API key; `null` is none, as the dialog was left. */
export function askForKey(refused) {
  const field = byId("key-text");
  byId("key-told").textContent = refused ? "The server does not know this key." : "This server asks for one. It stays in this tab.";
  field.value = "";
  return answered(byId("key"), () => {
    const key = field.value.trim();
    if (PRINTABLE.test(key)) return key;
    byId("key-told").textContent = "API keys are made of the characters of an English keyboard: this one cannot be sent.";
    return null;
  });
}

/** Copies a text; where the browser does not let a page copy (http to another machine), shows it selected. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = byId("code-text");
    field.value = text;
    const done = answered(byId("code"), () => true);
    field.select();
    await done;
    return false;
  }
}

/** Shows a dialog until its form is submitted with a value that is not `null`, or it is left, which is `null`. */
function answered(dialog, value) {
  let given = null;
  dialog.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    given = value();
    if (given !== null) dialog.close();
  };
  for (const leave of dialog.querySelectorAll("[data-leave]")) leave.onclick = () => dialog.close();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(given);
  });
}
