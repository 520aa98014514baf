/** The playground: a chat with the served model, and everything that the page's controls do. */

import { Composer } from "./composer.js";
import { Conversation, messagesOf } from "./conversation.js";
import { askForKey, copy } from "./dialogs.js";
import { byId } from "./elements.js";
import { PlanPanel } from "./plan.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { watchTheme } from "./theme.js";
import { Turns } from "./turns.js";

const server = new Server(askForKey);
const conversation = new Conversation();
const plan = new PlanPanel(server);
const settings = new Settings(replan);
const composer = new Composer({ changed: replan, send });
const turns = new Turns({ edit, retry, copy: copied });

let facts = { model: "", body_bytes: Infinity };
let editing = null; // index of the turn that the composer will replace
let running = null; // AbortController of the answer that is coming

function replan() {
  const before = conversation.turns.slice(0, editing ?? Infinity);
  const next = composer.empty && before.length ? before : [...before, composer.draft];
  plan.update(next, settings);
}

function send() {
  if (running || composer.empty) return;
  conversation.ask(composer.draft, editing ?? undefined);
  setEditing(null);
  composer.clear();
  answer();
}

async function answer() {
  const request = {
    model: facts.model,
    messages: messagesOf(conversation.turns),
    ...settings.options,
    stream: true,
    stream_options: { include_usage: true },
  };
  const turn = { role: "assistant", text: "", request, running: true };
  conversation.turns.push(turn);
  turns.show(conversation.turns);
  setRunning(new AbortController());
  const began = performance.now();
  try {
    checkSize(request);
    let ended = "";
    for await (const { choices, usage } of server.chat(request, running.signal)) {
      const piece = choices[0]?.delta.content ?? "";
      ended = choices[0]?.finish_reason ?? ended;
      turn.text += piece;
      if (piece) turns.grow(piece);
      if (usage) turn.note = described(usage, ended, performance.now() - began);
    }
  } catch (error) {
    if (error.name === "AbortError") turn.note = "stopped";
    else turn.problem = error.message;
  }
  turn.running = false;
  setRunning(null, turn.problem ? "Not answered" : turn.note === "stopped" ? "Stopped" : "Answered");
  turns.show(conversation.turns, { editing });
  replan();
}

/** A server that finds a body too large hangs up while it is being sent, which nobody could tell from other failures. */
function checkSize(request) {
  const size = new Blob([JSON.stringify(request)]).size;
  if (size > facts.body_bytes) {
    throw new Error(`The images take ${size} bytes in one request, over the server's limit of ${facts.body_bytes}.`);
  }
}

function described({ prompt_tokens, completion_tokens }, ended, milliseconds) {
  const cut = ended === "length" ? ", cut at the limit" : "";
  return `${prompt_tokens} + ${completion_tokens} tokens, ${(milliseconds / 1000).toFixed(1)} s${cut}`;
}

function retry() {
  if (running) return;
  conversation.unanswer();
  answer();
  byId("stop").focus();
}

function edit(index) {
  if (running) return;
  setEditing(index);
  composer.write(conversation.turns[index]);
  composer.focus();
}

function setEditing(index) {
  editing = index;
  byId("editing").hidden = index === null;
  turns.show(conversation.turns, { editing });
}

function keep() {
  setEditing(null);
  composer.clear();
  turns.show(conversation.turns); // the images go back to where they were
  composer.focus();
}

function clear() {
  running?.abort();
  conversation.turns = [];
  setEditing(null);
  composer.clear();
  composer.focus();
}

function setRunning(controller, status = "Answering…") {
  if (document.activeElement === byId("stop")) composer.focus();
  running = controller;
  byId("stop").hidden = !controller;
  byId("send").disabled = Boolean(controller);
  byId("status").textContent = status;
}

async function copied(text, what) {
  if (await copy(text)) byId("status").textContent = `${what} is in the clipboard`;
}

function pressed(event) {
  if (event.key === "Escape" && running) {
    event.preventDefault();
    running.abort();
  } else if (event.key === "Escape" && editing !== null) {
    keep();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
}

async function start() {
  watchTheme();
  byId("stop").addEventListener("click", () => running?.abort());
  byId("keep").addEventListener("click", keep);
  byId("clear").addEventListener("click", clear);
  document.addEventListener("keydown", pressed);
  composer.focus();
  try {
    facts = await server.facts();
  } catch (error) {
    composer.complain(error.message);
    return;
  }
  byId("model").textContent = `${facts.model} · ${facts.dtype} · ${facts.device}`;
  if (!facts.chats) composer.complain("This model has no chats: it is a base model. Ask it by example over the API.");
  settings.fit(facts);
  replan();
}

start();
