/** Light or dark: the system's choice until the switch is used. */

import { byId } from "./elements.js";

const system = matchMedia("(prefers-color-scheme: dark)");

export function watchTheme() {
  const dark = () => (localStorage.getItem("theme") ?? (system.matches ? "dark" : "light")) === "dark";
  const apply = () => {
    document.documentElement.dataset.theme = dark() ? "dark" : "light";
    byId("theme").ariaPressed = dark();
  };
  byId("theme").addEventListener("click", () => {
    localStorage.setItem("theme", dark() ? "light" : "dark");
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}
