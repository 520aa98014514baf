"""`idefics chat`: lines in, answers out; in a terminal with history, from a pipe without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from idefics.cli.images import parts_of_line
from idefics.cli.loading import memory_explained, open_model
from idefics.cli.options import ImageOptions, ModelOptions, SamplingOptions
from idefics.cli.session import Session
from idefics.cli.streams import as_text, stdin_lines
from idefics.cli.terminal import introduce, one_line, say, write
from idefics.config.whole_files import expanded
from idefics.engine.sampling_params import sampling_params
from idefics.errors import IdeficsError, InputError, OptionError, TemplateError

__all__ = ["chat"]

HELP = """\
Type a question. A path or URL in the line (typed, quoted or dropped) is taken as an image.
  /image PATH   add an image to the next question
  /images       list the images of this conversation
  /save FILE    write the conversation (.json can be loaded again, anything else is text)
  /load FILE    go on with a conversation saved as .json
  /reset        forget everything said so far
  /help         show this
  /exit         leave (so does Ctrl-D)
Ctrl-C stops an answer; what was said so far counts."""

PROMPT = ">>> "


def chat(
    *,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "-i",
            help="File or URL for the first question; repeatable.",
            rich_help_panel="Images",
            show_default=False,
        ),
    ] = None,
    model: ModelOptions,
    images: ImageOptions,
    sampling: SamplingOptions,
) -> None:
    """Talk about images, turn by turn; a path or URL in a line is taken as an image. /help lists the commands.

    From a pipe, each line is a question and stdout holds the answers only.
    """
    options = sampling.given()
    if options.get("num_beams", 1) > 1:
        raise OptionError(f"--num-beams {options['num_beams']} cannot be streamed; use generate")
    sampling_params({}, options)
    opened = open_model(model, images)
    if opened.processor.chat_template is None:
        raise TemplateError(f"{opened.name} has no chat template (a base model?); use `idefics generate --raw`")
    session = Session(opened, options)
    session.attach(image or ())
    talk = Talk(session)
    if sys.stdin is not None and sys.stdin.isatty():
        say(f"{opened.name} is ready; /help lists the commands")
        introduce(opened.name)
        with _history():
            talk.run(_typed())
    else:
        talk.run(stdin_lines())
        if talk.failed:
            raise typer.Exit(1)


class Talk:
    """Does what lines ask for; answers go to stdout, everything else to stderr.

    Args:
        session: the conversation.

    Attributes:
        failed: whether any line could not be done.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.failed = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: say(HELP),
            "/image": self._image,
            "/images": self._images,
            "/save": self._save,
            "/load": self._load,
            "/reset": self._reset,
        }

    def run(self, lines: Iterator[str]) -> None:
        """Takes lines until they end or one says `/exit`; an error in one is told, and the next is taken."""
        for line in lines:
            if line.strip() in ("/exit", "/quit", "/bye"):
                return
            try:
                with memory_explained("answering"):
                    self.take(line)
            except IdeficsError as error:
                self.failed = True
                say(f"error: {one_line(error)}")
            except KeyboardInterrupt:
                say("(stopped)")  # while an image was fetched, say; within an answer the session sees to it

    def take(self, line: str) -> None:
        """Does what one line asks for.

        Raises:
            IdeficsError: it cannot be done; the conversation is as it was.
        """
        word, _, rest = line.strip().partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
            return
        text, found = parts_of_line(line)
        if word.startswith("/") and not found and "/" not in word[1:]:
            raise InputError(f"there is no command {word}, and no such file; /help lists the commands")
        before = list(self.session.waiting)
        self.session.attach(found)
        if not text:
            if found:
                self._tell_waiting()
            return
        answered = False
        try:
            answered = self._ask(text)
        finally:
            if not answered:
                # The line will come again with its images; those attached earlier stay.
                self.session.waiting = before

    def _ask(self, text: str) -> bool:
        reply = self.session.ask(as_text(text, "the question"), write)
        if reply.text or not reply.interrupted:
            write("\n")
        if reply.interrupted:
            say("(stopped)" if reply.text else "(stopped before anything was said; the question does not count)")
        return bool(reply.text) or not reply.interrupted

    def _image(self, rest: str) -> None:
        text, found = parts_of_line(rest)
        if not rest:
            raise InputError("/image needs a path or URL")
        # A name without quotes may hold spaces: nothing else follows it.
        self.session.attach([rest] if text or not found else found)
        self._tell_waiting()

    def _images(self, _: str) -> None:
        if not self.session.images:
            say("no images yet; type or drop a path, or paste a URL")
        waiting = len(self.session.images) - len(self.session.waiting)
        for index, attachment in enumerate(self.session.images):
            size = f"{attachment.image.width}x{attachment.image.height}"
            state = "  (for the next question)" if index >= waiting else ""
            say(f"{index + 1}. {_short(attachment.source)}  {size}{state}")

    def _save(self, rest: str) -> None:
        path = _file(rest, "/save")
        self.session.save(path)
        say(f"saved {len(self.session.turns)} turn(s) to {path}")

    def _load(self, rest: str) -> None:
        self.session.load(_file(rest, "/load"))
        say(f"loaded {len(self.session.turns)} turn(s)")

    def _reset(self, _: str) -> None:
        self.session.reset()
        say("forgotten")

    def _tell_waiting(self) -> None:
        count = len(self.session.waiting)
        say(f"{count} image{'s' * (count > 1)} for the next question")


def _file(rest: str, command: str) -> Path:
    name = rest[1:-1] if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "\"'" else rest
    if not name:
        raise InputError(f"{command} needs the name of a file")
    return Path(name)


def _typed() -> Iterator[str]:
    """Lines from a terminal: Ctrl-C drops the line, Ctrl-D ends."""
    while True:
        try:
            line = input(PROMPT)
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /exit leaves)")
            continue
        except EOFError:
            say("")
            return
        yield line


@contextmanager
def _history() -> Iterator[None]:
    """Line editing, and the lines of earlier sessions, where the platform has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or expanded("~/.local/state")) / "idefics"
    path = state / "history"
    with suppress(OSError):  # the first time, or not ours to read: history is a comfort
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with suppress(OSError):
            state.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)


def _short(source: str) -> str:
    return source if len(source) <= 100 else f"{source[:60]}..."
