/** The playground: a conversation with the served model, and everything that the page's controls do. */

import { chat, completion } from "./asking.js";
import { Composer, draftOf } from "./composer.js";
import { Conversation, picturesOf, toldOf } from "./conversation.js";
import { askForKey, copy } from "./dialogs.js";
import { byId, size } from "./elements.js";
import { watchKeys } from "./keys.js";
import { Picture } from "./pictures.js";
import { PlanPanel } from "./plan.js";
import { NoKeyError, Server } from "./server.js";
import { Settings } from "./settings.js";
import { watchTheme } from "./theme.js";
import { Turns } from "./turns.js";
import { welcome } from "./welcome.js";

const server = new Server(askForKey);
const conversation = new Conversation();
const plan = new PlanPanel(server);
const settings = new Settings(replan);
const composer = new Composer({ changed: replan, send });
const turns = new Turns({ edit, retry, copy: copied });

let facts = null; // of the server; until they are there nothing can be sent
let way = chat; // of asking; the facts say whether there are chats
let loads = 0; // times that they were asked for
let editing = null; // index of the turn that the composer will replace
let kept = null; // the draft that the edit interrupted
let running = null; // AbortController of the answer that is coming
let waiting = false; // for images of the message that is to be sent

/** Brings the page's controls up to what happens. */
function show() {
  const edits = editing !== null;
  turns.show(conversation.turns, { editing, locked: edits || running !== null, running: running !== null });
  byId("editing").hidden = !edits;
  byId("text").setAttribute("aria-describedby", edits ? "editing-told keys" : "keys");
  byId("stop").hidden = !running;
  byId("send").disabled = running !== null || !facts;
  byId("change-key").hidden = !server.asksForKeys;
}

function status(text) {
  byId("status").textContent = text;
}

/** The turns before the message that is being written. */
function before() {
  return conversation.turns.slice(0, editing ?? Infinity);
}

function replan() {
  if (!facts) return;
  const earlier = toldOf(before());
  const next = composer.empty && earlier.length ? earlier : [...earlier, composer.turn];
  plan.update(way, next, settings);
  const bytes = bytesOf(next);
  const weight = byId("weight");
  weight.hidden = !picturesOf(next).length;
  weight.textContent = `${size(bytes)} of ${size(facts.body_bytes)}`;
  weight.classList.toggle("problem", bytes > facts.body_bytes);
}

function requestOf(asked, urlOf = (picture) => picture.url) {
  return {
    model: facts.model,
    ...way.asked(asked, urlOf),
    ...settings.options,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Of a request's body; reckoned without writing the images down, as it is asked for at every key. */
function bytesOf(asked) {
  const images = picturesOf(asked).reduce((sum, picture) => sum + picture.url.length, 0);
  return images + new Blob([JSON.stringify(requestOf(asked, () => ""))]).size;
}

/** Whether there is something to ask; a text is also continued as it stands. */
function askable() {
  return !composer.empty || (way.resumes && toldOf(before()).length > 0);
}

async function send() {
  if (running || waiting || !askable()) return;
  if (!facts) return status("The server has not answered yet");
  if (!(await allRead()) || running) return;
  const asked = composer.turn;
  if (!sendable(asked)) return;
  conversation.ask(asked, editing ?? undefined);
  composer.exchange(kept ?? draftOf());
  editing = kept = null;
  answer();
}

/** Begins with one of the page's own questions; what is being written meanwhile stays. */
async function begin(address, text) {
  if (running || waiting) return;
  waiting = true;
  try {
    const asked = { role: "user", text, pictures: [await Picture.fetched(address)] };
    if (conversation.turns.length || !sendable(asked)) return;
    conversation.ask(asked);
    answer();
  } catch (error) {
    composer.complain(error.message);
  } finally {
    waiting = false;
  }
}

/** Whether a turn is within the server's limit. Told here, as a server that finds a body too large hangs up: that looks like any failure. */
function sendable(asked) {
  const bytes = bytesOf([...toldOf(before()), asked]);
  if (bytes <= facts.body_bytes) return true;
  const limit = `over the server's limit of ${facts.body_bytes}`;
  composer.complain(`With its images this request has ${bytes} bytes, ${limit}. Take images out, or make them smaller.`);
  return false;
}

/** Waits for images that were added a moment ago: they belong to the message. */
async function allRead() {
  if (!composer.reading) return true;
  waiting = true;
  status("Reading images…");
  const ready = await composer.ready();
  waiting = false;
  status("");
  return ready;
}

async function answer() {
  const request = requestOf(toldOf(conversation.turns));
  const turn = { role: "assistant", text: "", way, request, running: true };
  conversation.turns.push(turn);
  running = new AbortController();
  status("Answering…");
  show();
  if (document.activeElement === byId("send") || document.activeElement === document.body) byId("stop").focus();
  const began = performance.now();
  try {
    let ended = "";
    for await (const { choices = [], usage } of server.events(way.path, request, running.signal)) {
      const piece = (choices[0] && way.piece(choices[0])) ?? "";
      ended = choices[0]?.finish_reason ?? ended;
      turn.text += piece;
      if (piece) turns.grow(turn, piece);
      if (usage) turn.note = described(usage, ended, performance.now() - began);
    }
  } catch (error) {
    if (error.name === "AbortError") {
      turn.note = "stopped";
    } else {
      turn.problem = error.message;
      turn.note = `what follows is asked without this ${way.nouns.asked}`;
    }
  }
  turn.running = false;
  if (document.activeElement === byId("stop")) composer.focus();
  running = null;
  show();
  replan();
  if (!conversation.turns.includes(turn)) return; // a new chat has begun, and nothing is to be said of the old one
  status(turn.problem ? "Not answered" : turn.note === "stopped" ? "Stopped" : "Answered");
  turns.announce(turn.problem ?? turn.text);
}

function described({ prompt_tokens, completion_tokens }, ended, milliseconds) {
  const cut = ended === "length" ? ", cut at the limit" : "";
  return `${prompt_tokens} + ${completion_tokens} tokens, ${(milliseconds / 1000).toFixed(1)} s${cut}`;
}

function retry() {
  conversation.unanswer();
  answer();
  byId("stop").focus();
}

function edit(turn) {
  editing = conversation.turns.indexOf(turn);
  kept = composer.exchange(draftOf(turn));
  show();
  composer.focus();
}

function leaveEdit() {
  editing = null;
  composer.exchange(kept);
  kept = null;
  show();
  composer.focus();
}

function clear() {
  running?.abort();
  conversation.turns = [];
  editing = kept = null;
  composer.exchange(draftOf());
  status("");
  show();
  composer.focus();
}

async function copied(text, what) {
  if (await copy(text)) status(`${what} is in the clipboard`);
}

/** Ends what Esc can end at the moment. */
function escape() {
  if (running) running.abort();
  else if (editing !== null) leaveEdit();
}

async function changeKey() {
  if (await server.changeKey()) load();
}

/** Asks for the server's facts until they come; a later call, as with another key, takes an earlier one's place. */
async function load() {
  const mine = ++loads;
  const trouble = byId("trouble");
  for (let pause = 1; mine === loads; pause = Math.min(2 * pause, 30)) {
    try {
      const found = await server.facts();
      if (!facts) fit(found);
      trouble.textContent = "";
      show();
      replan();
      return;
    } catch (error) {
      trouble.textContent = error.message;
      show();
      if (error instanceof NoKeyError) return;
      await new Promise((resolve) => setTimeout(resolve, pause * 1000));
    }
  }
}

function fit(found) {
  facts = found;
  byId("model").textContent = `${facts.model} · ${facts.dtype} · ${facts.device}`;
  way = facts.chats ? chat : completion;
  for (const [id, look] of Object.entries(way.looks)) Object.assign(byId(id), look);
  composer.fit(way);
  settings.fit(facts);
  welcome(facts, begin);
}

watchTheme();
byId("stop").addEventListener("click", () => running?.abort());
byId("keep").addEventListener("click", leaveEdit);
byId("clear").addEventListener("click", clear);
byId("change-key").addEventListener("click", changeKey);
watchKeys({ send, escape, entersSend: () => way.entersSend });
composer.focus();
show();
load();
