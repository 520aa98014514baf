/** A request as something to run elsewhere. A key is never part of it: it comes from the environment. */

import { Server } from "./server.js";
import { tabStore } from "./store.js";

/** For a shell. The body goes in by a here-document, as images are longer than arguments may be. */
export function curl({ path }, request) {
  const key = tabStore.get("key") === null ? "" : ` -H "Authorization: Bearer $IDEFICS_API_KEY"`;
  const body = JSON.stringify(request);
  return `curl -N ${Server.address(path)} -H "Content-Type: application/json"${key} \\
  --data-binary @- <<'JSON'
${body}
JSON
`;
}

const BEYOND_OPENAI = ["do_image_splitting", "max_image_size", "repetition_penalty"];

/** For Python, with the client `openai`. */
export function python(way, request) {
  const needsKey = tabStore.get("key") !== null;
  const entries = Object.entries(request);
  const own = entries.filter(([name]) => !BEYOND_OPENAI.includes(name));
  const beyond = Object.fromEntries(entries.filter(([name]) => BEYOND_OPENAI.includes(name)));
  const options = Object.keys(beyond).length ? [...own, ["extra_body", beyond]] : own;
  return `${needsKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${Server.address("v1")}", api_key=${needsKey ? 'os.environ["IDEFICS_API_KEY"]' : '"none"'})
stream = client.${way.python.call}.create(
${options.map(([name, value]) => `    ${name}=${literal(value)},\n`).join("")})
for event in stream:
    for choice in event.choices:
        print(${way.python.piece} or "", end="", flush=True)
print()
`;
}

function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // JSON's texts and numbers are Python's too
  return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`).join(", ")}}`;
}
