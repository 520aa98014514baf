/** The turns of a conversation, and what of them counts. */

export class Conversation {
  /** `{role: "user", text, pictures}`, `{role: "assistant", text, way, request, running, note, problem}` */
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
