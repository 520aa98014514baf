/** The turns of a chat, and the messages that they are to the server. */

export class Conversation {
  /** `{role: "user", text, pictures}`, `{role: "assistant", text, request, note, problem}` */
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

/** Turns in OpenAI's form; `urlOf` says how an image is given. */
export function messagesOf(turns, urlOf = (picture) => picture.url) {
  return turns
    .filter((turn) => turn.role === "user" || turn.text)
    .map(({ role, text, pictures = [] }) => ({
      role,
      content: [
        ...pictures.map((picture) => ({ type: "image_url", image_url: { url: urlOf(picture) } })),
        ...(text || !pictures.length ? [{ type: "text", text }] : []),
      ],
    }));
}
