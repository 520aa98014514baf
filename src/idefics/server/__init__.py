"""One model over HTTP: the text-generation-inference API and OpenAI's, over one engine. Needs the extra `server`."""
