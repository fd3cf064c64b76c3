"""What of the generated text is the reply: the voice's own words, once.

A model goes on writing the conversation if one lets it. The answer ends

    Ada: barely awake
    Bob: same           <- where a line begins with the name of somebody else
    ha ha ha ha ha ha   <- where a phrase goes round in circles
    same line
    same line
    same line           <- where a line comes for the third time in a row

Text comes in pieces. What may still become one of these is held back, and nothing else.
"""

from collections.abc import Iterable

_LONGEST_PHRASE = 80
_FEWEST_ROUNDS = 4
_CIRCLE_LENGTH = 80
"""A circle shorter than this may be meant: people write ha ha ha ha."""


class ReplyText:
    """Filters one reply while it is generated."""

    def __init__(self, own_name: str, others: Iterable[str]) -> None:
        self._own = f"{own_name.casefold()}:"
        self._others = tuple(f"{name.casefold()}:" for name in others)
        self.ended = False
        """True once the rest of what is generated is not the reply's."""
        self._held = ""
        """Came in and was not given out; it begins where `_line` ends."""
        self._line = ""
        """What was given out of the line that is being written."""
        self._last_line, self._times = "", 0
        """The last line that was not empty, and how often it came in a row."""
        self._space = ""
        """White space given out only if a word follows."""
        self._tail = ""

    def feed(self, piece: str) -> str:
        """Text that can be shown now."""
        if self.ended:
            return ""
        self._held += piece
        return self._released(at_end=False)

    def close(self) -> str:
        """Text that was held back and turned out to be the reply's own."""
        return "" if self.ended else self._released(at_end=True)

    def _released(self, *, at_end: bool) -> str:
        shown = ""
        while self._held and not self.ended:
            line, newline, rest = self._held.partition("\n")
            is_whole = bool(newline) or at_end
            if not self._line:
                line = self._without_own_name(line)
                if self._is_of_another(line, is_whole) or self._is_repeated(line, is_whole):
                    self.ended = True
                    break
                if not is_whole and self._may_become_either(line):
                    break
            shown += self._given_out(line)
            self._held = rest
            if newline:
                self._end_line()
        return shown

    # The rules -----------------------------------------------------------------------------

    def _without_own_name(self, line: str) -> str:
        """The voice may sign its lines; the chat window shows its name already."""
        text = line.lstrip()
        if text.casefold().startswith(self._own):
            after = text[len(self._own) :]
            if after[:1].isspace():
                return after.lstrip()
        return line

    def _is_of_another(self, line: str, is_whole: bool) -> bool:
        text = line.strip().casefold() if is_whole else line.lstrip().casefold()
        # The space keeps a member called `http` from ending links.
        return any(
            text.startswith(name)
            and (text[len(name) :][:1].isspace() or (is_whole and text == name))
            for name in self._others
        )

    def _is_repeated(self, line: str, is_whole: bool) -> bool:
        return is_whole and self._times >= 2 and line.strip() == self._last_line

    def _may_become_either(self, line: str) -> bool:
        text = line.lstrip().casefold()
        if any(f"{name} ".startswith(text) for name in (*self._others, self._own)):
            return True
        return self._times >= 2 and self._last_line.startswith(line.strip())

    # Giving out ----------------------------------------------------------------------------

    def _given_out(self, text: str) -> str:
        self._line += text
        words = text.rstrip()
        before, self._space = self._space, text[len(words) :] if words else self._space + text
        if not words:
            return ""
        if not self._tail:
            before, words = "", words.lstrip()
        self._tail = (self._tail + before + words)[-_LONGEST_PHRASE * _FEWEST_ROUNDS :]
        self.ended = _goes_in_circles(self._tail)
        return before + words

    def _end_line(self) -> None:
        line, self._line = self._line.strip(), ""
        self._space += "\n"
        if line:
            self._times = self._times + 1 if line == self._last_line else 1
            self._last_line = line


def _goes_in_circles(text: str) -> bool:
    """True if the text ends with one phrase over and over."""
    for length in range(1, _LONGEST_PHRASE + 1):
        rounds = max(_FEWEST_ROUNDS, -(-_CIRCLE_LENGTH // length))
        if text.endswith(text[-length:] * rounds):
            return True
    return False
