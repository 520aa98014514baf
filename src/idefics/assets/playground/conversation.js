/** The turns of a chat, and the messages that they are to the server. */

export class Conversation {
  /** `{role: "user", text, pictures}`, `{role: "assistant", text, request, running, note, problem}` */
  turns = [];

  /** Goes on with a user's turn; with `at`, in place of all from there on. */
  ask(turn, at = this.turns.length) {
    this.turns.splice(at, Infinity, turn);
  }

  /** Forgets the answers after the last question. */
  unanswer() {
    while (this.turns.at(-1)?.role === "assistant") this.turns.pop();
  }
}

/** The turns that the server is told of: a question that failed would fail again with every later one. */
export function toldOf(turns) {
  return turns.filter((turn, index) => !turn.problem && !turns[index + 1]?.problem);
}

/** The images of turns, in order. */
export function picturesOf(turns) {
  return turns.flatMap((turn) => turn.pictures ?? []);
}

/** Turns in OpenAI's form; `urlOf` says how the image with a number is given. */
export function messagesOf(turns, urlOf = (picture) => picture.url) {
  let number = 0;
  return turns
    .filter((turn) => turn.role === "user" || turn.text)
    .map(({ role, text, pictures = [] }) => ({
      role,
      content: [
        ...pictures.map((picture) => ({ type: "image_url", image_url: { url: urlOf(picture, number++) } })),
        ...(text || !pictures.length ? [{ type: "text", text }] : []),
      ],
    }));
}
