/** The ways of asking a model: in messages where it has chats, and else by a text that it goes on with. */

const IMAGE = /!\[\]\([^)]*\)/g; // as the server finds images in a text
const MARKS = ["![](", "<image>", "<fake_token_around_image>"]; // what begins an image, or stands for one

/** Asks in messages. */
export const chat = {
  path: "v1/chat/completions",
  nouns: { asked: "question", answered: "answer" },
  looks: {}, // those that the page comes with

  /** Whether Enter alone sends; else it breaks the line, and sends with Ctrl. */
  entersSend: true,

  /** Whether the model can go on where nothing new is said. */
  resumes: false,

  /** What of a text that was typed is asked. */
  typed: (text) => text.trim(),

  /** The turns as a part of a request; `urlOf(picture, number)` says how each image is given. */
  asked: (turns, urlOf) => ({ messages: messagesOf(turns, urlOf) }),

  /** The text that a choice of an event brings. */
  piece: (choice) => choice.delta?.content,

  /** Python's words for the same, with the client `openai`. */
  python: { call: "chat.completions", piece: "choice.delta.content" },

  /** The turns as a part of a request for a plan, and which of the plan's images are theirs. */
  planned(turns) {
    // Each has a name, as the plan may count more images: those that a text holds as markdown.
    const asked = chat.asked(turns, (picture, number) => `${pixels(picture)} (${number})`);
    return { asked, own: (images) => images.filter(({ name }) => name !== null) };
  },
};

/** Asks by all turns as one text; nothing stands between them that nobody wrote. */
export const completion = {
  path: "v1/completions",
  nouns: { asked: "text", answered: "continuation" },
  looks: {
    hint: { textContent: "A base model: it has no chats, it continues your text. Drop, paste or choose images for it." },
    text: { ariaLabel: "Text", placeholder: "Text to continue…" },
    composer: { ariaLabel: "Text" },
    pictures: { ariaLabel: "Images of the text" },
    "editing-told": { textContent: "Editing an earlier text: continuing it replaces what follows." },
    clear: { textContent: "New text" },
    send: { textContent: "Continue" },
    skip: { textContent: "Skip to the text" },
    sends: { textContent: "continues" },
    sending: { textContent: "Ctrl Enter" },
    breaking: { textContent: "Enter" },
  },
  entersSend: false, // line breaks are part of what is continued
  resumes: true,
  typed: (text) => text,
  asked: (turns, urlOf) => ({ prompt: promptOf(turns, urlOf) }),
  piece: (choice) => choice.text,
  python: { call: "completions", piece: "choice.text" },

  planned(turns) {
    // No name: its bracket would end the image. So they are counted, with those that users wrote as markdown before them.
    const places = [];
    const asked = completion.asked(turns, (picture, number, before) => {
      places.push(before.match(IMAGE)?.length ?? 0);
      return pixels(picture);
    });
    return { asked, own: (images) => places.map((place) => images[place]) };
  },
};

function pixels({ width, height }) {
  return `${width}x${height}`;
}

/** Turns in OpenAI's form. */
function messagesOf(turns, urlOf) {
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

/** Turns as one text, with images in markdown. */
function promptOf(turns, urlOf) {
  let prompt = "";
  let number = 0;
  let modelled = false; // whether any of it is the model's
  for (const { role, text, pictures = [] } of turns) {
    for (const picture of pictures) prompt += `![](${urlOf(picture, number++, prompt)})`;
    if (role === "assistant") prompt = continued(prompt, text);
    else prompt = (modelled ? unbegun(prompt, text) : prompt) + text;
    modelled ||= role === "assistant";
  }
  return prompt;
}

/** A prompt whose end begins no mark that the text after it would complete. */
function unbegun(prompt, text) {
  for (const mark of MARKS) {
    for (let begun = 1; begun < mark.length; begun++) {
      const [head, tail] = [mark.slice(0, begun), mark.slice(begun)];
      if (prompt.endsWith(head) && text.startsWith(tail)) return `${prompt.slice(0, -begun)}${head[0]} ${head.slice(1)}`;
    }
  }
  return prompt;
}

/**
 * A prompt and what the model wrote after it, which asks for no image: no mark that it completes stays whole, and none that it
 * could end. What stands before the prompt's last bracket is ended already.
 */
function continued(prompt, text) {
  const ended = prompt.lastIndexOf(")") + 1;
  const apart = (rest, mark) => rest.replaceAll(mark, `${mark[0]} ${mark.slice(1)}`);
  return prompt.slice(0, ended) + MARKS.reduce(apart, prompt.slice(ended) + text);
}
