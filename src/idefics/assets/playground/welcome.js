/** What stands where the conversation will: what the model knows, and questions to begin with. */

import { byId, element } from "./elements.js";
import { Server } from "./server.js";

/** @param ask called with the picture's address and the question of the one that is chosen. */
export function welcome({ knows, examples }, ask) {
  byId("knows").textContent = knows ?? "";
  byId("knows").hidden = !knows;
  const item = ({ image, question }) => {
    const address = Server.address(`playground/${image}`);
    const asked = element("button", { type: "button" }, element("img", { src: address, alt: "" }), element("span", {}, question));
    asked.addEventListener("click", () => ask(address, question));
    return element("li", {}, asked);
  };
  byId("examples").replaceChildren(...examples.map(item));
}
